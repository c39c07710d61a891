"""The parts of an attack: leave no trace, score candidates, climb the loss, keep the strongest of each image."""

import contextlib
import struct
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import runtime
from rqlib.core.vocabulary import check_pixels

Watch = Callable[[Tensor, Tensor], None]
"""Called with the losses (B,) and the successes (B,) of every iterate that is scored."""

_FLAT = (
    "the gradient of the loss is exactly zero for every image: the model is not differentiable or its logits are "
    "saturated, and this attack is no more than noise; run robustness.diagnose, or attack through straight_through "
    "or a twin"
)
_NOT_FINITE = (
    "the gradient of the loss is NaN or infinite for {} of {} images: they do not move as they should, and what looks "
    "like robustness is a broken derivative (a root or a norm of 0, a division 0 / 0, an overflow); mend the model, or "
    "attack a twin"
)
_PROBABILITIES = (
    "the model returns probabilities (rows >= 0 that sum to 1): a softmax before the loss hides gradients; "
    "return logits"
)


@contextlib.contextmanager
def traceless(model: nn.Module, x: Tensor, rng: torch.Generator | None) -> Iterator[None]:
    """Inside the block: eval mode, gradients on, parametrized weights computed once, random numbers of its own.

    Afterwards everything is as before. The random numbers come from ``rng``, or from the images if it is None.
    """
    seed = _seed(x) if rng is None else int(torch.randint(2**62, (), generator=rng, device=rng.device))
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices), runtime.evaluating(model), parametrize.cached(), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _seed(x: Tensor) -> int:
    """A seed that depends on the images: the bits of their sum."""
    return struct.unpack("<Q", struct.pack("<d", x.detach().sum(dtype=torch.float64).item()))[0]


RANDOMIZED = 1e-3
"""A network draws random numbers if its forward passes have a larger `spread`; a smaller one is rounding."""

_PROBES = 8  # forward passes that tell whether a network draws random numbers


def spread(logits: Tensor) -> float:
    """Largest difference between forward passes of the same images (passes, ...), relative to the largest logit."""
    low, high = logits.aminmax(dim=0)
    return ((high - low).max() / logits.abs().max().clamp(min=1e-12)).item()


@torch.no_grad()
def draws_once(model: nn.Module, image: Tensor) -> bool:
    """Whether a network draws random numbers once per forward pass, for example one size for the whole batch.

    Copies of an image in one batch would then all see the same draw. A few forward passes of ``image``
    (1, C, H, W) tell; torch's random state is put back.
    """
    with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
        if spread(model(image.repeat(_PROBES, 1, 1, 1))) > RANDOMIZED:
            return False
        first = model(image)
        return any(spread(torch.stack([first, model(image)])) > RANDOMIZED for _ in range(_PROBES))


class Score:
    """Loss and success of each image under a model, averaged over ``draws`` forward passes.

    All draws are computed in one batch, or one after another if the network `draws_once` per forward pass.
    """

    def __init__(self, model: nn.Module, y: Tensor, loss, targeted: bool = False, draws: int = 1):
        self.model, self.loss, self.targeted, self.draws = model, loss, targeted, draws
        self.classes = int(hard(y).max()) + 1 if len(y) else 0
        self.checked = self.climbs = self.broken = False
        self.one_by_one = None if draws > 1 else False  # None: not known yet

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(losses (B,), fooled (B,)) of x (B, C, H, W). If targeted, losses are negated and fooled means reached."""
        logits = self.forwards(x)
        losses = self.loss(logits, torch.cat([y] * self.draws)).view(self.draws, -1).mean(0)
        hit = logits.detach().view(self.draws, len(x), -1).mean(0).argmax(1) == hard(y)
        return (-losses, hit) if self.targeted else (losses, ~hit)

    def forwards(self, x: Tensor) -> Tensor:
        """Logits of all draws, one after another: (draws B, K)."""
        if self.one_by_one is None:
            self.one_by_one = draws_once(self.model, x[:1].detach())
        copies = [x] * self.draws
        logits = torch.cat([self.model(x) for x in copies]) if self.one_by_one else self.model(torch.cat(copies))
        if not self.checked:
            _check_logits(logits, self.draws * len(x), self.classes)
            self.checked = True
        return logits.to(x.dtype)

    def gradient(self, losses: Tensor, x: Tensor) -> Tensor:
        """The gradient of the summed loss with respect to x, (B, C, H, W); warns if it is zero everywhere, or NaN."""
        gradient = torch.autograd.grad(losses.sum(), x)[0] if losses.requires_grad else torch.zeros_like(x)
        if not self.climbs:
            self.climbs = True
            if not gradient.any():
                warnings.warn(_FLAT, stacklevel=2)
        if not self.broken and not gradient.isfinite().all():
            self.broken = True
            count = int((~gradient.flatten(1).isfinite().all(1)).sum())
            warnings.warn(_NOT_FINITE.format(count, len(x)), stacklevel=2)
        return gradient


def climb(
    score: Score,
    x: Tensor,
    y: Tensor,
    adversarial: Tensor,
    advance: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    step_size: float,
    steps: int,
    *,
    active_set: bool,
    score_last: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Yield (rows, iterate, losses, fooled) for every iterate from the start (0) to the last (steps).

    ``rows`` are the images still in the batch: with an active set, misclassified ones leave it. Losses and fooled
    of the last iterate are None unless ``score_last``.
    """
    rows = torch.arange(len(x), device=x.device)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        losses, fooled = score(adversarial, y)
        yield rows, adversarial.detach(), losses.detach(), fooled
        if active_set and fooled.any():
            standing = (~fooled).nonzero().squeeze(1)
            if not len(standing):
                return
            rows, x, y = rows[standing], x[standing], y[standing]
            adversarial, gradient = _gradient_of(standing, score, adversarial, y, losses)
        else:
            gradient = score.gradient(losses, adversarial)
        adversarial = advance(x, adversarial.detach(), gradient, step_size)
    losses, fooled = score(adversarial, y) if score_last else (None, None)
    yield rows, adversarial, losses if losses is None else losses.detach(), fooled


def _gradient_of(
    standing: Tensor, score: Score, adversarial: Tensor, y: Tensor, losses: Tensor
) -> tuple[Tensor, Tensor]:
    """(images, gradient) of the rows that are still classified correctly; ``y`` holds the labels of these rows only."""
    if 2 * len(standing) > len(adversarial):
        return adversarial[standing], score.gradient(losses, adversarial)[standing]
    # A second forward pass of few images is cheaper than a backward pass of all.
    few = adversarial.detach()[standing].requires_grad_()
    return few, score.gradient(score(few, y)[0], few)


class Strongest:
    """The strongest candidate of each image so far: success counts before a larger loss."""

    def __init__(self, x: Tensor):
        self.x = x.detach().clone()
        self.losses = torch.full(x.shape[:1], -torch.inf, dtype=x.dtype, device=x.device)
        self.fooled = torch.zeros_like(self.losses, dtype=torch.bool)

    def standing(self) -> Tensor:
        """Indices of the images for which no candidate has fooled the network."""
        return (~self.fooled).nonzero().squeeze(1)

    def offer(self, index: Tensor, x: Tensor, losses: Tensor | None, fooled: Tensor | None) -> None:
        """Keep those of the candidates x that are stronger. Candidates without losses are kept unconditionally."""
        if losses is None:
            self.x[index] = x
            return
        better = (fooled & ~self.fooled[index]) | ((fooled == self.fooled[index]) & (losses > self.losses[index]))
        index = index[better]
        self.x[index], self.losses[index], self.fooled[index] = x[better], losses[better], fooled[better]

    def follow(self, path: Iterator, index: Tensor, *, last: int | None, watch: Watch | None) -> None:
        """Offer the iterates of a path (`climb`) of the images at ``index``: all, or only the one numbered ``last``."""
        for step, (rows, iterate, losses, fooled) in enumerate(path):
            if watch is not None and losses is not None:
                watch(losses, fooled)
            if last is None or step == last:
                self.offer(index[rows], iterate, losses, fooled)


def hard(y: Tensor) -> Tensor:
    """Labels (B,) as they are; of soft labels (B, K) the most probable class."""
    return y.argmax(1) if y.dim() == 2 else y


def check_images(x: Tensor, y: Tensor) -> None:
    """Raise unless x is a batch of images (B, C, H, W) in [0, 1] and y its labels, (B,) or soft (B, K)."""
    if x.dim() != 4 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected x (B, C, H, W) float32, got {tuple(x.shape)} {x.dtype}; data.to_pixels makes it")
    soft = y.dim() == 2 and len(y) == len(x) and y.is_floating_point()
    if not soft and (y.shape != x.shape[:1] or y.dtype != torch.int64):
        raise ValueError(f"expected y ({len(x)},) int64, one label per image, got {tuple(y.shape)} {y.dtype}")
    if not x.numel():
        return
    check_pixels(x, "x", nan="x holds NaN")
    if y.min() < 0:
        raise ValueError(f"expected labels y >= 0, got {int(y.min())}")


def check_at_least(least: int, **numbers: float) -> None:
    """Raise unless every number is at least ``least``; NaN raises too."""
    for name, number in numbers.items():
        if not number >= least:
            raise ValueError(f"expected {name} >= {least}, got {number}")


class NotFinite(ValueError):
    """A network that is attacked returns NaN or infinity."""


def _check_logits(logits: Tensor, rows: int, classes: int) -> None:
    """Raise unless logits are finite, of shape (rows, K) with K >= classes; warn if they are probabilities."""
    if logits.dim() != 2 or len(logits) != rows:
        raise ValueError(f"expected logits ({rows}, K) from the model, got {tuple(logits.shape)}")
    if classes > logits.shape[1]:
        raise ValueError(f"expected labels y in 0..{logits.shape[1] - 1}, got {classes - 1}")
    if not logits.isfinite().all():
        raise NotFinite("expected finite logits from the model, got NaN or infinity; check its weights")
    if (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-2 and logits.shape[1] > 1:
        warnings.warn(_PROBABILITIES, stacklevel=2)
