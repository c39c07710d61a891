"""What the checks share: the network to be checked, its images, and the attacks that were already run on it."""

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
from rqlib.robustness import plane
from rqlib.robustness.random_networks import EOT_SAMPLES

PREDICTIONS = 10
"""Number of fresh forwards by which a randomized network is scored."""
PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"


class Finding(NamedTuple):
    """Outcome of a check: its status, and the figures that it rests on, as text."""

    status: str
    value: str


class Trace(NamedTuple):
    """Loss and success at every iterate of a PGD run, each (iterates, N)."""

    losses: Tensor
    fooled: Tensor


@dataclass
class Case:
    """A network with images (N, C, H, W), labels (N,) and a PGD; the results of attacks are kept by name.

    Attributes:
        given_eot_samples: number of draws that the caller averages gradients over.
        broken: name of an attack inside ``ball`` -> which images it fooled, bool (N,).
        The others: as in `robustness.diagnose`.
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
        return plane.logits(self.model, x, self.batch_size)

    @cached_property
    def forwards(self) -> Tensor:
        """Logits of five forwards (5, N, K). The last is computed on the images in another order, and put back."""
        shift = max(len(self.x) // 2, 1)
        moved = self.logits(self.x.roll(shift, 0)).roll(-shift, 0)
        return torch.stack([*(self.logits(self.x) for _ in range(4)), moved])

    @cached_property
    def spread(self) -> float:
        """Largest difference between the five forwards, relative to the largest logit."""
        return ascent.spread(self.forwards)

    @property
    def randomized(self) -> bool:
        """Whether logits differ by more than rounding from forward to forward or with the position in the batch."""
        return self.spread > ascent.RANDOMIZED

    @cached_property
    def drawn(self) -> float:
        """`ascent.spread` of the logits of the first image over the draws that an attack averages a gradient over."""
        draws = self.eot_samples
        with ascent.traceless(self.model, self.x, runtime.rng(0)), torch.no_grad():
            logits = ascent.Score(self.model, self.y, ce, draws=draws).forwards(self.x[:1])
        return ascent.spread(logits.view(draws, -1))

    @property
    def eot_samples(self) -> int:
        """The given number; at least `EOT_SAMPLES` if the network is randomized."""
        return max(self.given_eot_samples, EOT_SAMPLES) if self.randomized else self.given_eot_samples

    def wrong(self, x: Tensor) -> Tensor:
        """Which images are misclassified, bool (N,).

        A randomized network answers by the mean softmax of `PREDICTIONS` fresh forwards.
        """
        if not self.randomized:
            return self.logits(x).argmax(1) != self.y
        return sum(self.logits(x).softmax(1) for _ in range(PREDICTIONS)).argmax(1) != self.y

    @cached_property
    def clean_wrong(self) -> Tensor:
        """Which images are misclassified before any attack."""
        return self.wrong(self.x)

    def apply(self, attack: Attack, model: nn.Module | None = None) -> Tensor:
        """Adversarial images of an attack on the case's network, or on another; batch by batch."""
        pairs = zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
        return torch.cat([attack(self.model if model is None else model, x, y) for x, y in pairs])

    def pgd(self, **changes) -> Attack:
        """The case's PGD with some settings changed."""
        settings = {"ball": self.ball, "step_size": self.step_size, "steps": self.steps}
        return partial(attacks.pgd, **(settings | {"eot_samples": self.eot_samples} | changes))

    def broken_by(self, name: str, attack: Attack, model: nn.Module | None = None) -> Tensor:
        """Which images an attack inside the ball fools, bool (N,); it runs once and is then remembered by its name."""
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
        """Losses and successes at every iterate of the case's PGD, with some settings changed."""
        seen = []  # of each batch: losses of every iterate, successes of every iterate
        for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
            iterates = []
            self.pgd(watch=lambda *one, into=iterates: into.append(one), **changes)(self.model, x, y)
            seen.append([*zip(*iterates, strict=True)])
        return Trace(*(torch.cat([torch.stack(part) for part in parts], 1) for parts in zip(*seen, strict=True)))

    def gradients(self, *, eot_samples: int = 1, seed: int = 0) -> Tensor:
        """Gradient of the cross-entropy with respect to every image, (N, C, H, W)."""
        return plane.loss_gradients(self.model, self.x, self.y, eot_samples=eot_samples, seed=seed)

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
    """How much more often ``mask`` is true than ``over``, and whether this exceeds two paired standard errors."""
    difference = mask.double() - over.double()
    mean = difference.mean().item()
    error = difference.std().item() / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return mean, mean > max(2 * error, 1e-12)


def percent(fraction: float) -> str:
    """A fraction as text."""
    return f"{100 * fraction:.1f}%"
