"""Nearest points of sets: of norm balls, for attacks, and of tensors with few nonzero entries, for pruning.

Batches are (B, ...), with one ball per image. The nearest tensor with n nonzero entries keeps the n entries of largest
magnitude; a mask (bool, True is kept) says which. Among equal magnitudes the entry that comes first is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True)
class Linf:
    """All delta with ``max |delta_i| <= epsilon``, where epsilon is in pixels of [0, 1]."""

    epsilon: float

    def __post_init__(self):
        _check_radius(self.epsilon)
        if self.epsilon > 1:
            raise ValueError(f"expected an L-infinity epsilon in [0, 1], got {self.epsilon}; 8 gray levels are 8 / 255")

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point: every entry clamped to [-epsilon, epsilon]."""
        return delta.clamp(-self.epsilon, self.epsilon)

    def steepest(self, gradient: Tensor) -> Tensor:
        """argmax of <gradient, d> over ``max |d_i| <= 1``: the sign."""
        return gradient.sign()

    def sample(self, like: Tensor) -> Tensor:
        """One uniform point of the ball per image, in the shape of ``like``, from torch's global random numbers."""
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
    """All delta with ``sqrt(sum delta_i^2) <= epsilon``, where epsilon is in pixels of [0, 1]."""

    epsilon: float

    def __post_init__(self):
        _check_radius(self.epsilon)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point: ``delta min(1, epsilon / ||delta||)``."""
        return delta * (self.epsilon / self._norms(delta)).clamp(max=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """argmax of <gradient, d> over ``||d|| <= 1``: ``gradient / ||gradient||``, or 0 if the gradient is 0."""
        return gradient / self._norms(gradient)

    def sample(self, like: Tensor) -> Tensor:
        """As `Linf.sample`: a uniform direction times ``epsilon U^(1/d)``, U uniform in [0, 1], d entries per image."""
        uniform = torch.rand(len(like), *[1] * (like.dim() - 1), device=like.device, dtype=like.dtype)
        return self.steepest(torch.randn_like(like)) * self.epsilon * uniform ** (1 / max(like[:1].numel(), 1))

    def norm(self, delta: Tensor) -> Tensor:
        """``sqrt(sum delta_i^2)`` of each image, (B,)."""
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)

    def contains(self, delta: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each image's delta lies in the ball, bool (B,); NaN does not."""
        return self.norm(delta) <= self.epsilon + tolerance

    def whole(self, like: Tensor) -> "L2":
        """As `Linf.whole`."""
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


def kept_count(kept: float, size: int) -> int:
    """How many of ``size`` entries stay: ``round(kept * size)``.

    Raises:
        ValueError: ``kept`` is not above 0 and at most 1.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"expected kept above 0 and at most 1 (kept = 1 - sparsity), got {kept}")
    return round(kept * size)


def largest(x: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` entries of largest magnitude."""
    magnitude = x.detach().abs().flatten()
    if not 0 < count < len(magnitude):
        return torch.full_like(x, count > 0, dtype=torch.bool)
    least = magnitude.kthvalue(len(magnitude) - count + 1).values
    mask = magnitude > least
    ties = (magnitude == least).nonzero().squeeze(1)
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(x.shape)


def largest_of_all(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """Masks of the ``count`` entries of largest magnitude among all tensors together."""
    mask = largest(torch.cat([x.detach().flatten() for x in tensors]), count)
    parts = mask.split([x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]


def filter_norms(weight: Tensor) -> Tensor:
    """Euclidean norm of the weights of each output channel, (O,)."""
    return torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)


def column_norms(weight: Tensor) -> Tensor:
    """Euclidean norm over the output channels of each position of a filter, of shape (1, I, ...)."""
    return torch.linalg.vector_norm(weight.detach(), dim=0, keepdim=True)


def n_of_m(x: Tensor, n: int, m: int) -> Tensor:
    """Mask of the ``n`` largest weights among every ``m`` consecutive input channels.

    If the number of channels is no multiple of m, at most n are kept of the channels that remain at the end.
    Sparse tensor cores multiply matrices that keep two of four (Mishra et al. 2021, arXiv 2104.08378).

    Raises:
        ValueError: not 0 < n <= m.
    """
    if not 0 < n <= m:
        raise ValueError(f"expected N:M with 0 < N <= M, got {n}:{m}")
    last = x.detach().abs().movedim(1, -1)  # (O, ..., I)
    padded = torch.nn.functional.pad(last, (0, -last.shape[-1] % m), value=-1.0).unflatten(-1, (-1, m))
    order = padded.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(padded, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.flatten(-2)[..., : last.shape[-1]].movedim(-1, 1)
