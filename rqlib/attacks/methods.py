"""FGSM, PGD, WRM and noise: (model, x, y) -> adversarial x, composed with `functools.partial`.

An attack leaves no trace. It runs in eval mode and restores every module's mode, differentiates with
respect to the input only, and draws its randomness apart from torch's global generators: the same
model, x, y and ``rng`` give the same result; without an rng the images are the seed.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rqlib.attacks import ascent
from rqlib.attacks import losses as losses_
from rqlib.core.projections import Ball, Linf
from rqlib.core.vocabulary import Attack, did_you_mean
from rqlib.models.blocks import Normalize

Watch = Callable[[Tensor, Tensor], None]
"""Called with the losses (B,) and the successes (B,) of every iterate that is scored."""


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, **options) -> Tensor:
    """One step of the ball's radius in the steepest direction (Goodfellow et al. 2015, arXiv 1412.6572).

    ``options``: ``loss``, ``targeted``, ``eot_samples``, ``rng``, as in `pgd`.
    """
    one_step = {"step_size": ball.epsilon, "steps": 1, "random_start": False, "best": False}
    return pgd(model, x, y, ball=ball, **one_step, **options)


def noise(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, samples: int = 10, **options) -> Tensor:
    """The strongest of ``samples`` uniform draws from the ball: the floor every attack must beat.

    ``options``: ``loss``, ``targeted``, ``eot_samples``, ``active_set``, ``rng``, as in `pgd`.
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
    watch: Watch | None = None,
) -> Tensor:
    """Projected gradient ascent on the loss of each image (Madry et al. 2018, arXiv 1706.06083).

    ``x' <- clip(x + project(x' + step_size steepest(gradient) - x), 0, 1)``, from a uniform start in the ball.

    Args:
        x, y: images (B, C, H, W) in [0, 1]; labels (B,), or the classes to reach if ``targeted``. With
            ``ce`` also soft labels (B, K): the ascent is then on the KL divergence from them.
        ball: where x' - x stays: `projections.Linf` or `projections.L2`, in pixels.
        step_size: length of a step in the ball's norm, in pixels. With an active set and few steps the ball's
            diameter saves time: every step goes all the way, and most images that fall at all fall sooner.
        restarts: independent starts, of which each image keeps the strongest result.
        eot_samples: forwards that one gradient is averaged over, for randomized networks (Athalye et
            al. 2018, arXiv 1802.00420); tiled into the batch, or one after another where the network
            draws once for a whole batch (`ascent.draws_once`).
        loss: ``ce``, ``margin`` or ``dlr`` (`attack_losses`).
        best: return the strongest iterate of each image (misclassified before not, then the larger
            loss) instead of the last.
        active_set: only success matters: an image leaves the batch as soon as it is misclassified. Not
            for randomized networks, which one lucky draw would let go.
        report_exact: the geometry of the first defense report: ``ball`` (L-infinity) and ``step_size``
            count in the network's normalized input, the start is N(0, epsilon) and everything is
            clamped to [-2, 2] there (in pixels, not exactly [0, 1]); the last iterate is returned.
        watch: sees losses and successes of every iterate that is scored.

    Returns:
        Adversarial images of the shape, dtype and memory format of x.

    Raises:
        ValueError: x not in [0, 1] or not (B, C, H, W); y out of range; a negative size or number.
    """
    ascent.check_images(x, y)
    ascent.check_at_least(0, step_size=step_size, steps=steps)
    ascent.check_at_least(1, restarts=restarts, eot_samples=eot_samples)
    start, advance = _report_moves(model, ball) if report_exact else _moves(ball)
    best = (best and not report_exact) or active_set
    strongest = ascent.Strongest(x)
    with ascent.traceless(model, x, rng):
        score = ascent.Score(model, y, losses_.named(loss), targeted, eot_samples)
        for left in reversed(range(restarts)):
            index = strongest.standing() if active_set else torch.arange(len(x), device=x.device)
            if not len(index):
                break
            clean, labels = x.detach()[index], y[index]
            path = ascent.climb(
                score,
                clean,
                labels,
                start(clean) if random_start else clean,
                advance,
                step_size,
                steps,
                active_set=active_set,
                score_last=left > 0 if active_set else best or restarts > 1,
            )
            for step, (rows, iterate, losses, fooled) in enumerate(path):
                if watch is not None and losses is not None:
                    watch(losses, fooled)
                if best or step == steps:
                    strongest.offer(index[rows], iterate, losses, fooled)
    return strongest.x


def wrm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    gamma: float,
    steps: int,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Ascent on ``gamma CE(x') - ||x' - x||^2 / 2``, step t of length ``1 / sqrt(t + 1)``, from x (arXiv 1710.10571).

    No ball: the larger ``gamma``, the farther the images go. Arguments, result and errors as `pgd`.
    """
    ascent.check_images(x, y)
    ascent.check_at_least(0, gamma=gamma, steps=steps)
    clean = adversarial = x.detach().clone()
    with ascent.traceless(model, x, rng):
        score = ascent.Score(model, y, losses_.ce)
        for step in range(steps if len(x) else 0):
            adversarial = adversarial.detach().requires_grad_()
            gradient = score.gradient(score(adversarial, y)[0], adversarial)
            adversarial = adversarial.detach()
            uphill = gamma * gradient - (adversarial - clean)
            adversarial = (adversarial + uphill / (step + 1) ** 0.5).clamp(0, 1)
    return adversarial


def none(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """No attack: the images themselves, to be judged as attacked ones are."""
    return x


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd, "noise": noise, "wrm": wrm}


def named(name: str, **settings) -> Attack:
    """An attack by name, its settings bound.

    Raises:
        ValueError: unknown name.
    """
    if name not in ATTACKS:
        raise ValueError(did_you_mean("attack", name, ATTACKS))
    return partial(ATTACKS[name], **settings)


def in_words(attack: Attack | None) -> str:
    """An attack and its settings, the same in every process: what tells the results of attacks apart."""
    function = getattr(attack, "func", attack)
    return f"{getattr(function, '__qualname__', repr(function))} {getattr(attack, 'keywords', {})}"


def pace(ball: Ball, steps: int) -> dict:
    """Settings of `pgd`: steps of ``2.5 epsilon / steps`` reach any point of the ball from any start.

    Source: Madry et al. 2018, arXiv 1706.06083.
    """
    return {"steps": steps, "step_size": 2.5 * ball.epsilon / max(steps, 1)}


def _moves(ball: Ball):
    """(start, advance) in pixels: x -> x', and (x, x', gradient, length) -> next x'."""

    def start(x: Tensor) -> Tensor:
        return (x + ball.sample(x)).clamp(0, 1)

    def advance(x: Tensor, adversarial: Tensor, gradient: Tensor, length: float) -> Tensor:
        return (x + ball.project(adversarial + length * ball.steepest(gradient) - x)).clamp(0, 1)

    return start, advance


def _report_moves(model: nn.Module, ball: Ball):
    """The same in the report's geometry; one normalized unit is the network's ``std`` in pixels."""
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
