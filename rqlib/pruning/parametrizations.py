"""What stands between a stored weight and the pruned one: a mask, scores that choose it, or the pull of ADMM."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Masked(nn.Module):
    """The entries that a mask keeps, 0 elsewhere; what is not kept has no gradient.

    Args:
        mask: bool, True is kept; of a shape that broadcasts against the tensor.
    """

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def right_inverse(self, x: Tensor) -> Tensor:
        """What to store: x itself."""
        return x


class Scored(nn.Module):
    """The entries whose scores a rule keeps, 0 elsewhere; the gradient passes straight through the choice.

    ``dL/dS = dL/dW_effective * W * sign(S)``; W has the gradient of a mask.

    Args:
        scores: one an entry, or a shape that broadcasts; tensors that stay or go together share them.
        choose: scores -> mask (bool, True is kept) of their shape.
        rows: where only some of the scores are this tensor's: their indices, of a shape that broadcasts.

    Source: HYDRA, Sehwag et al. 2020, arXiv 2002.10509; Ramanujan et al. 2020, arXiv 1911.13299.
    """

    def __init__(self, scores: nn.Parameter, choose: Callable[[Tensor], Tensor], rows: Tensor | None = None):
        super().__init__()
        self.scores, self.choose = scores, choose
        self.register_buffer("rows", rows)

    def mask(self) -> Tensor:
        """What is kept now: bool, of a shape that broadcasts against the tensor."""
        return self._mine(self.choose(self.scores.detach()))

    def forward(self, x: Tensor) -> Tensor:
        straight = self.scores.abs() - self.scores.abs().detach()  # 0, with the gradient of |S|
        return x * (self.mask() + self._mine(straight))

    def right_inverse(self, x: Tensor) -> Tensor:
        """What to store: x itself."""
        return x

    def _mine(self, scores: Tensor) -> Tensor:
        return scores if self.rows is None else scores[self.rows]


class Anchored(nn.Module):
    """The tensor itself, beside what ADMM pulls it to: ``Z`` (nearest) in the set and the scaled dual ``U``.

    Source: Boyd et al. 2011, Foundations and Trends in Machine Learning 3(1); Zhang et al. 2018, arXiv 1804.03294.
    """

    def __init__(self, nearest: Tensor, rho: float):
        super().__init__()
        self.register_buffer("nearest", nearest.detach().clone())
        self.register_buffer("dual", torch.zeros_like(nearest))
        self.register_buffer("rho", torch.tensor(rho))

    def forward(self, x: Tensor) -> Tensor:
        return x

    def penalty(self, x: Tensor) -> Tensor:
        """``rho / 2 ||x - Z + U||^2``."""
        return self.rho / 2 * (x - self.nearest + self.dual).square().sum()

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor, growth: float) -> None:
        """``Z <- mask (x + U)``, ``U <- U + x - Z``, ``rho <- growth rho``; the mask is that of x + U."""
        self.nearest.copy_(mask * (x + self.dual))
        self.dual.add_(x - self.nearest)
        self.rho.mul_(growth)
