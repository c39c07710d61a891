"""FGSM, N-FGSM, PGD, WRM and noise: (model, x, y) -> adversarial x. `functools.partial` or `named` binds settings.

An attack leaves no trace: it runs in eval mode and restores the mode of every module, and it differentiates with
respect to the images only. Its random numbers are its own, apart from torch's global ones: the same model, x, y and
``rng`` give the same result. Without an rng the seed is made of the images.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rqlib.attacks import ascent, losses
from rqlib.core.projections import Ball, Linf
from rqlib.core.vocabulary import Attack, did_you_mean
from rqlib.models.blocks import Normalize


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, **options) -> Tensor:
    """One step in the steepest direction, as long as the ball's radius (Goodfellow et al. 2015, arXiv 1412.6572).

    ``options`` are ``loss``, ``targeted``, ``eot_samples`` and ``rng``, as in `pgd`.
    """
    one_step = {"step_size": ball.epsilon, "steps": 1, "random_start": False, "best": False}
    return pgd(model, x, y, ball=ball, **one_step, **options)


def noisy_fgsm(model: nn.Module, x: Tensor, y: Tensor, *, ball: Linf, rng: torch.Generator | None = None) -> Tensor:
    """One step from a start in twice the ball, not clipped to it: made for training (N-FGSM; arXiv 2202.01181).

    ``x' = clip(x + u + epsilon sign(gradient at x + u), 0, 1)`` with u uniform in [-2 epsilon, 2 epsilon], so that x'
    may leave the ball by twice its radius. Trained on such images, a network seldom overfits to one step
    (de Jorge et al. 2022). Arguments and errors as `pgd`.

    Raises:
        ValueError: also for a ball that is not L-infinity.
    """
    ascent.check_images(x, y)
    if not isinstance(ball, Linf):
        raise ValueError(f"expected an L-infinity ball for noisy_fgsm, got {ball}; use attacks.pgd")
    with ascent.traceless(model, x, rng):
        score = ascent.Score(model, y, losses.ce)
        start = (x + 2 * ball.epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1).detach().requires_grad_()
        gradient = score.gradient(score(start, y)[0], start)
        return (start.detach() + ball.epsilon * gradient.sign()).clamp(0, 1)


def noise(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, samples: int = 10, **options) -> Tensor:
    """The strongest of ``samples`` uniform draws from the ball. Every real attack must be stronger.

    ``options`` are ``loss``, ``targeted``, ``eot_samples``, ``active_set`` and ``rng``, as in `pgd`.
    """
    return pgd(model, x, y, ball=ball, step_size=0.0, steps=0, restarts=samples, **options)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    step_size: float,
    steps: int,
    restarts: int = 1,
    eot_samples: int = 1,
    targeted: bool = False,
    loss: str = "ce",
    random_start: bool = True,
    best: bool = True,
    active_set: bool = False,
    report_exact: bool = False,
    rng: torch.Generator | None = None,
    watch: ascent.Watch | None = None,
) -> Tensor:
    """Projected gradient ascent on the loss of each image (Madry et al. 2018, arXiv 1706.06083).

    ``x' <- clip(x + project(x' + step_size steepest(gradient) - x), 0, 1)``, from a uniform start in the ball.

    Args:
        x, y: images (B, C, H, W) in [0, 1]; labels (B,), or the classes to reach if ``targeted``. With
            ``ce`` also soft labels (B, K): the ascent is then on the KL divergence from them.
        ball: where x' - x stays: `projections.Linf` or `projections.L2`, in pixels.
        step_size: length of a step in the ball's norm, in pixels.
        restarts: number of independent starts; each image keeps its strongest result.
        eot_samples: number of forward passes that a gradient is averaged over, for randomized networks
            (Athalye et al. 2018, arXiv 1802.00420).
        loss: ``ce``, ``margin`` or ``dlr`` (`losses`).
        best: return the strongest iterate of each image instead of the last: a misclassified one before others,
            then the one with the largest loss.
        active_set: an image leaves the batch as soon as it is misclassified. Not for randomized networks, where one
            random misclassification would count as success and end the attack on that image.
        report_exact: the geometry of the first defense report: ``ball`` (L-infinity) and ``step_size`` are
            meant in the normalized input, the start is N(0, epsilon), and everything is clamped to [-2, 2]
            there, which is not exactly [0, 1] in pixels. The last iterate is returned.
        watch: called with the losses and successes of every iterate that is scored.

    Returns:
        Adversarial images of the shape, dtype and memory format of x.

    Raises:
        ValueError: x is not in [0, 1] or not (B, C, H, W); y is out of range; a size or number is negative.
    """
    ascent.check_images(x, y)
    ascent.check_at_least(0, step_size=step_size, steps=steps)
    ascent.check_at_least(1, restarts=restarts, eot_samples=eot_samples)
    start, advance = _report_moves(model, ball) if report_exact else _moves(ball)
    best = (best and not report_exact) or active_set
    strongest = ascent.Strongest(x)
    with ascent.traceless(model, x, rng):
        score = ascent.Score(model, y, losses.named(loss), targeted, eot_samples)
        for left in reversed(range(restarts)):
            index = strongest.standing() if active_set else torch.arange(len(x), device=x.device)
            if not len(index):
                break
            clean, labels = x.detach()[index], y[index]
            first = start(clean) if random_start else clean
            score_last = left > 0 if active_set else best or restarts > 1
            path = ascent.climb(
                score, clean, labels, first, advance, step_size, steps, active_set=active_set, score_last=score_last
            )
            strongest.follow(path, index, last=None if best else steps, watch=watch)
    return strongest.x


def wrm(
    model: nn.Module, x: Tensor, y: Tensor, *, gamma: float, steps: int, rng: torch.Generator | None = None
) -> Tensor:
    """Ascent on ``gamma CE(x') - ||x' - x||^2 / 2`` from x (Sinha et al. 2018, arXiv 1710.10571).

    Step t = 0, 1, ... has the length ``1 / sqrt(t + 1)``. There is no ball: the larger ``gamma``, the farther
    the images move. Arguments, result and errors as `pgd`.
    """
    ascent.check_images(x, y)
    ascent.check_at_least(0, gamma=gamma, steps=steps)
    clean = adversarial = x.detach().clone()
    with ascent.traceless(model, x, rng):
        score = ascent.Score(model, y, losses.ce)
        for step in range(steps if len(x) else 0):
            adversarial = adversarial.detach().requires_grad_()
            gradient = score.gradient(score(adversarial, y)[0], adversarial)
            adversarial = adversarial.detach()
            uphill = gamma * gradient - (adversarial - clean)
            adversarial = (adversarial + uphill / (step + 1) ** 0.5).clamp(0, 1)
    return adversarial


def none(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """No attack: the images themselves, to be scored in the same way as attacked images."""
    return x


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd, "noise": noise, "wrm": wrm}


def named(name: str, **settings) -> Attack:
    """An attack by name, with its settings bound: ``named("pgd", ball=ball, **pace(ball, 10))``.

    Raises:
        ValueError: unknown name.
    """
    if name not in ATTACKS:
        raise ValueError(did_you_mean("attack", name, ATTACKS))
    return partial(ATTACKS[name], **settings)


def in_words(attack: Attack | None) -> str:
    """An attack and its settings as text, the same in every process: it tells results of different attacks apart."""
    function = getattr(attack, "func", attack)
    return f"{getattr(function, '__qualname__', repr(function))} {getattr(attack, 'keywords', {})}"


def pace(ball: Ball, steps: int) -> dict:
    """Settings of `pgd`: the number of steps, and steps of ``2.5 epsilon / steps`` (Madry et al. 2018).

    So many steps of this length reach any point of the ball from any start.
    """
    return {"steps": steps, "step_size": 2.5 * ball.epsilon / max(steps, 1)}


def _moves(ball: Ball):
    """Two functions (start, advance) in pixels: x -> x', and (x, x', gradient, length) -> next x'."""

    def start(x: Tensor) -> Tensor:
        return (x + ball.sample(x)).clamp(0, 1)

    def advance(x: Tensor, adversarial: Tensor, gradient: Tensor, length: float) -> Tensor:
        return (x + ball.project(adversarial + length * ball.steepest(gradient) - x)).clamp(0, 1)

    return start, advance


def _report_moves(model: nn.Module, ball: Ball):
    """As `_moves`, in the geometry of the report: one unit of the normalized input is ``std`` in pixels."""
    normalize = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    if normalize is None or not isinstance(ball, Linf):
        raise ValueError("report_exact needs an L-infinity ball and a network that normalizes its input (models.build)")
    mean, std = normalize.mean, normalize.std

    def start(x: Tensor) -> Tensor:
        return x + torch.randn_like(x) * ball.epsilon * std

    def advance(x: Tensor, adversarial: Tensor, gradient: Tensor, length: float) -> Tensor:
        moved = adversarial + length * std * gradient.sign()
        reach = ball.epsilon * std
        return moved.clamp(x - reach, x + reach).clamp(mean - 2 * std, mean + 2 * std)

    return start, advance
