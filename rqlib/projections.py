"""Nearest points of sets, and the norm balls that attacks live in.

A ball is a frozen value that knows four things: the nearest point of it, the direction of steepest
ascent in its norm, a uniform draw from it, and what it contains. Batches are (B, ...): one ball an image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True)
class Linf:
    """All delta with ``max |delta_i| <= epsilon``; epsilon in pixels of [0, 1]."""

    epsilon: float

    def __post_init__(self):
        _check_radius(self.epsilon)
        if self.epsilon > 1:
            raise ValueError(f"expected an L-infinity epsilon in [0, 1], got {self.epsilon}; 8 gray levels are 8 / 255")

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball: every entry clamped to [-epsilon, epsilon]."""
        return delta.clamp(-self.epsilon, self.epsilon)

    def steepest(self, gradient: Tensor) -> Tensor:
        """argmax of <gradient, d> over ``max |d_i| <= 1``: the sign."""
        return gradient.sign()

    def sample(self, like: Tensor) -> Tensor:
        """A point of the ball an image, uniform, of the shape of ``like``; from torch's global generator."""
        return torch.empty_like(like).uniform_(-self.epsilon, self.epsilon)

    def norm(self, delta: Tensor) -> Tensor:
        """``max |delta_i|`` of each image, (B,)."""
        return delta.flatten(1).abs().amax(1)

    def contains(self, delta: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each image's delta lies in the ball, bool (B,); NaN does not."""
        return self.norm(delta) <= self.epsilon + tolerance

    def whole(self, like: Tensor) -> "Linf":
        """The smallest ball around any image of [0, 1] that holds all images of that shape."""
        return Linf(1.0)


@dataclass(frozen=True)
class L2:
    """All delta with ``sqrt(sum delta_i^2) <= epsilon``; epsilon in pixels of [0, 1]."""

    epsilon: float

    def __post_init__(self):
        _check_radius(self.epsilon)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball: ``delta min(1, epsilon / ||delta||)``."""
        return delta * (self.epsilon / self._norms(delta)).clamp(max=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """argmax of <gradient, d> over ``||d|| <= 1``: ``gradient / ||gradient||``; 0 where the gradient is 0."""
        return gradient / self._norms(gradient)

    def sample(self, like: Tensor) -> Tensor:
        """A point of the ball an image, uniform, of the shape of ``like``; from torch's global generator.

        A uniform direction times ``epsilon U^(1/d)``, U uniform in [0, 1], d entries an image.
        """
        uniform = torch.rand(len(like), *[1] * (like.dim() - 1), device=like.device, dtype=like.dtype)
        return self.steepest(torch.randn_like(like)) * self.epsilon * uniform ** (1 / max(like[:1].numel(), 1))

    def norm(self, delta: Tensor) -> Tensor:
        """``sqrt(sum delta_i^2)`` of each image, (B,)."""
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)

    def contains(self, delta: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each image's delta lies in the ball, bool (B,); NaN does not."""
        return self.norm(delta) <= self.epsilon + tolerance

    def whole(self, like: Tensor) -> "L2":
        """The smallest ball around any image of [0, 1] that holds all images of that shape."""
        return L2(math.sqrt(like[0].numel()))

    @staticmethod
    def _norms(delta: Tensor) -> Tensor:
        """Norms that divide and broadcast: (B, 1, ...), at least 1e-12."""
        return torch.linalg.vector_norm(delta, dim=tuple(range(1, delta.dim())), keepdim=True).clamp(min=_TINY)


Ball = Linf | L2
BALLS = {"Linf": Linf, "L2": L2}
"""Name -> ball(epsilon)."""


def _check_radius(epsilon: float) -> None:
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"expected a finite epsilon >= 0 in pixels of [0, 1], got {epsilon}")
