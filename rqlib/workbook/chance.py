"""Does a network work at all? Its accuracy beside chance, and what it would be with other pixels."""

import warnings
from dataclasses import dataclass

import scipy
from torch import Tensor, nn

from rqlib import measures
from rqlib.core import runtime
from rqlib.data import ImageDataset, Split
from rqlib.models import conventions

MOST_IMAGES = 500
"""At most so many validation images are scored."""

SIGNIFICANCE = 0.01
"""An accuracy that guessing reaches more often than this is not above chance."""


class AtChanceWarning(UserWarning):
    """A network classifies no better than guessing."""


@dataclass(frozen=True)
class Score:
    """How accurate a network is on ``images`` images of a split, and how accurate guessing would be.

    Guessing always answers the most frequent class, whose share is ``chance``.
    """

    accuracy: float
    chance: float
    images: int
    split: str = "validation"

    @property
    def can_tell(self) -> bool:
        """Whether there are so many images that at least all right answers would be above chance."""
        return self.chance**self.images < SIGNIFICANCE

    @property
    def above_chance(self) -> bool:
        """Whether guessing would be as accurate in less than 1% of all cases (one-sided binomial test)."""
        hits = round(self.accuracy * self.images)
        return scipy.special.bdtrc(hits - 1, self.images, self.chance) < SIGNIFICANCE

    def __str__(self) -> str:
        on = f"{self.images} {self.split} image{'s' if self.images > 1 else ''}"
        verdict = "" if self.above_chance else ": no better than guessing"
        verdict = verdict if self.can_tell else ": too few images to tell it from guessing"
        return f"float accuracy {self.accuracy:.3f} on {on} (chance {self.chance:.3f}){verdict}"


def score(model: nn.Module, split: Split) -> Score:
    """The accuracy on the first `MOST_IMAGES` images of a split, in float32."""
    x, y = split.take(MOST_IMAGES)
    with runtime.exact():
        accuracy = measures.accuracy(model, x, y)
    return beside_chance(accuracy, y, "validation")


def beside_chance(accuracy: float, labels: Tensor, split: str) -> Score:
    """An accuracy on images with these labels, beside that of guessing; ``split`` is the name of these images."""
    return Score(accuracy, labels.bincount().max().item() / len(labels), len(labels), split)


def warn_at_chance(model: nn.Module, title: str, images: ImageDataset, found: Score) -> None:
    """One `AtChanceWarning` if the accuracy is not above chance: it says what every other convention would give.

    The network itself keeps its pixels.
    """
    if found.above_chance or not found.can_tell:
        return
    own = conventions.of(model, images.spec)
    words = conventions.in_words(own, images.spec)
    others = _with_other_pixels(model, [name for name in conventions.names(images.spec) if name != words], images)
    listed = ", ".join(f"{name} gives {other.accuracy:.3f}" for name, other in others.items())
    better = [name for name, other in others.items() if other.above_chance]
    remedy = (
        f"if that is how it was trained, say pixels={better[0]!r}"
        if better
        else "none of them is above chance: are these its weights, its images and its order of classes?"
    )
    warnings.warn(
        f"{title} with pixels {words!r}: {found}. On the same images {listed}; {remedy}",
        AtChanceWarning,
        stacklevel=3,
    )


def _with_other_pixels(model: nn.Module, names: list[str], images: ImageDataset) -> dict[str, Score]:
    """Convention -> score, best first; the network is left as it was."""
    own, scores = conventions.of(model, images.spec), {}
    try:
        for name in names:
            conventions.change(model, conventions.with_pixels(images.spec, name))
            scores[name] = score(model, images.validation)
    finally:
        conventions.change(model, own)
    return dict(sorted(scores.items(), key=lambda item: -item[1].accuracy))
