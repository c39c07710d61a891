"""What the checks share: a network under scrutiny, its images, and the attacks that were already run on it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import pandas
import torch
from torch import Tensor, nn

from rqlib import attacks
from rqlib.attacks import ascent
from rqlib.attacks.losses import ce
from rqlib.core import runtime
from rqlib.core.projections import Ball
from rqlib.core.vocabulary import Attack

EOT_SAMPLES = 20  # draws a gradient is averaged over when the network turns out to be randomized
PREDICTIONS = 10  # fresh forwards a randomized network is scored by
PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"


class Finding(NamedTuple):
    """Outcome of one check: status and the figure it rests on."""

    status: str
    value: str


class Trace(NamedTuple):
    """One PGD run, seen at every iterate: losses and successes (iterates, N)."""

    losses: Tensor
    fooled: Tensor


@dataclass
class Case:
    """A network with images (N, C, H, W), labels (N,) and an attack; results of attacks are kept by name.

    Attributes:
        others: further networks by name, from which adversarial images are transferred.
        twins: differentiable twins of a network that rounds: with STE, in float, without noise.
        history: the training log with a column ``validation_robust_accuracy``.
        broken: name of an attack inside ``ball`` -> which images it fooled, bool (N,).
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball
    step_size: float
    steps: int
    given_eot_samples: int = 1
    others: Mapping[str, nn.Module] = field(default_factory=dict)
    twins: Mapping[str, nn.Module] = field(default_factory=dict)
    history: pandas.DataFrame | None = None
    full: bool = False
    batch_size: int = 128
    broken: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, x: Tensor) -> Tensor:
        """One forward in eval mode, batch by batch: (N, K)."""
        with runtime.evaluating(self.model), torch.no_grad():
            return torch.cat([self.model(part) for part in x.split(self.batch_size)])

    @cached_property
    def forwards(self) -> Tensor:
        """Logits of five forwards, the last on the images in another order, put back: (5, N, K)."""
        shift = max(len(self.x) // 2, 1)
        moved = self.logits(self.x.roll(shift, 0)).roll(-shift, 0)
        return torch.stack([*(self.logits(self.x) for _ in range(4)), moved])

    @cached_property
    def spread(self) -> float:
        """Largest difference between the five forwards, relative to the largest logit."""
        return ascent.spread(self.forwards)

    @property
    def randomized(self) -> bool:
        """Whether logits differ beyond rounding from forward to forward or with the position in the batch."""
        return self.spread > ascent.RANDOMIZED

    @cached_property
    def drawn(self) -> float:
        """`ascent.spread` of the draws that an attack averages a gradient over, of the first image."""
        draws = self.eot_samples
        with ascent.traceless(self.model, self.x, runtime.rng(0)), torch.no_grad():
            logits = ascent.Score(self.model, self.y, ce, draws=draws).forwards(self.x[:1])
        return ascent.spread(logits.view(draws, -1))

    @property
    def eot_samples(self) -> int:
        """The given number; forced up where the network is randomized."""
        return max(self.given_eot_samples, EOT_SAMPLES) if self.randomized else self.given_eot_samples

    def wrong(self, x: Tensor) -> Tensor:
        """Which images are misclassified, bool (N,); by the mean softmax of ten fresh forwards if randomized."""
        if not self.randomized:
            return self.logits(x).argmax(1) != self.y
        return sum(self.logits(x).softmax(1) for _ in range(PREDICTIONS)).argmax(1) != self.y

    @cached_property
    def clean_wrong(self) -> Tensor:
        """Which images are misclassified before any attack."""
        return self.wrong(self.x)

    def apply(self, attack: Attack, model: nn.Module | None = None) -> Tensor:
        """Adversarial images, batch by batch."""
        pairs = zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
        return torch.cat([attack(self.model if model is None else model, x, y) for x, y in pairs])

    def pgd(self, **changes) -> Attack:
        """The case's PGD with some settings changed."""
        settings = {"ball": self.ball, "step_size": self.step_size, "steps": self.steps}
        return partial(attacks.pgd, **(settings | {"eot_samples": self.eot_samples} | changes))

    def broken_by(self, name: str, attack: Attack, model: nn.Module | None = None) -> Tensor:
        """Which images an attack inside the ball fools, bool (N,); run once, then remembered by name."""
        if name not in self.broken:
            self.broken[name] = self.wrong(self.apply(attack, model))
        return self.broken[name]

    @cached_property
    def adversarial(self) -> Tensor:
        """The images under the case's own PGD."""
        return self.apply(self.pgd())

    @cached_property
    def white_box(self) -> Tensor:
        """Which images the case's own PGD fools."""
        self.broken["PGD"] = self.wrong(self.adversarial)
        return self.broken["PGD"]

    def trace(self, **changes) -> Trace:
        """A PGD run with every iterate's losses and successes."""
        seen: list[list[tuple[Tensor, Tensor]]] = []
        for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
            seen.append([])
            self.pgd(watch=lambda losses, fooled: seen[-1].append((losses, fooled)), **changes)(self.model, x, y)
        losses, fooled = (
            torch.cat([torch.stack([pair[part] for pair in batch]) for batch in seen], 1) for part in (0, 1)
        )
        return Trace(losses, fooled)

    def gradients(self, *, eot_samples: int = 1, seed: int = 0) -> Tensor:
        """Gradient of the cross-entropy with respect to every image, (N, C, H, W)."""
        with ascent.traceless(self.model, self.x, runtime.rng(seed)):
            score = ascent.Score(self.model, self.y, ce, draws=eot_samples)
            x = self.x.detach().clone().requires_grad_()
            return score.gradient(score(x, self.y)[0], x)

    def losses(self, x: Tensor) -> Tensor:
        """Cross-entropy of each image, (N,)."""
        return ce(self.logits(x), self.y)

    def within(self, epsilon: float) -> Ball:
        """The case's ball with another radius."""
        return dataclasses.replace(self.ball, epsilon=epsilon)


def share(mask: Tensor) -> float:
    """Fraction of true entries."""
    return mask.float().mean().item()


def gain(mask: Tensor, over: Tensor) -> tuple[float, bool]:
    """How much more often ``mask`` is true than ``over``, and whether that exceeds two paired standard errors."""
    difference = mask.double() - over.double()
    mean = difference.mean().item()
    error = difference.std().item() / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return mean, mean > max(2 * error, 1e-12)


def percent(fraction: float) -> str:
    """A fraction as text."""
    return f"{100 * fraction:.1f}%"
