"""The words that all chapters share: shape letters, `ImageSpec`, types of functions, checks of pixels and names.

Shape letters: B batch, C channels, H height, W width, K classes. Images are ``x: (B, C, H, W)``
float in [0, 1]; labels are ``y: (B,)`` int64; a classifier maps x to ``logits: (B, K)``.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, x, y) -> scalar loss, differentiable in the model's parameters."""

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, x, y) -> adversarial x of the same shape, in [0, 1]."""


@dataclass(frozen=True)
class ImageSpec:
    """What a network must know about its images: shape, number of classes, normalization.

    ``mean`` and ``std`` are given for each channel, in pixels of [0, 1]. The normalization is the first
    layer of every network, so a network takes plain pixels.
    """

    channels: int = 3
    height: int = 32
    width: int = 32
    num_classes: int = 10
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if min(self.channels, self.height, self.width, self.num_classes) < 1:
            raise ValueError(f"expected positive channels, height, width and num_classes, got {self}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"expected mean and std of {self.channels} channels, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ValueError(f"expected std > 0 in every channel, got {self.std}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


def check_pixels(pixels: Tensor, name: str, *, nan: str) -> None:
    """Raise a ValueError unless the pixels ``name`` lie in [0, 1], up to rounding; it says ``nan`` if they hold NaN."""
    low, high = (bound.item() for bound in pixels.detach().aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        remedy = nan if low != low else "normalization belongs inside the model (models.build)"
        raise ValueError(f"expected {name} in [0, 1], got [{low:.3g}, {high:.3g}]; {remedy}")


def did_you_mean(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name: what kind of name it is, the most similar known name, and all known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {kind} {name!r}{hint}; known: {', '.join(known)}"
