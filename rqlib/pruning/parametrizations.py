"""What stands between a stored weight and the pruned one: a mask, scores that choose it, or the pull of ADMM."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import parametrizations
from rqlib.core.parametrizations import steps_of


class Masked(nn.Module):
    """Keeps the entries where a mask is True and sets the others to 0, which have no gradient. The mask broadcasts."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def right_inverse(self, x: Tensor) -> Tensor:
        """What is stored for the value x: x itself."""
        return x


class Scored(nn.Module):
    """Keeps the entries that a rule chooses by their scores; the gradient passes straight through the choice.

    ``dL/dS = dL/dW_effective * W * sign(S)``. The gradient of W is that of `Masked`.

    Args:
        scores: one per entry, or of a shape that broadcasts. Tensors that stay or go together share their scores.
        choose: scores -> mask (bool, True is kept) of the same shape.
        rows: indices of the scores that belong to this tensor, of a shape that broadcasts against it; None if all do.

    Source: HYDRA, Sehwag et al. 2020, arXiv 2002.10509; Ramanujan et al. 2020, arXiv 1911.13299.
    """

    def __init__(self, scores: nn.Parameter, choose: Callable[[Tensor], Tensor], rows: Tensor | None = None):
        super().__init__()
        self.scores, self.choose = scores, choose
        self.register_buffer("rows", rows)

    def mask(self) -> Tensor:
        """The mask that the scores give now: bool, of a shape that broadcasts against the tensor."""
        return self._mine(self.choose(self.scores.detach()))

    def forward(self, x: Tensor) -> Tensor:
        straight = self.scores.abs() - self.scores.abs().detach()  # its value is 0, its gradient that of |S|
        return x * (self.mask() + self._mine(straight))

    def right_inverse(self, x: Tensor) -> Tensor:
        """What is stored for the value x: x itself."""
        return x

    def _mine(self, scores: Tensor) -> Tensor:
        return scores if self.rows is None else scores[self.rows]


class Anchored(nn.Module):
    """Leaves the tensor as it is and holds what ADMM pulls it to: ``Z`` (nearest), which is sparse or has few distinct
    values, and the scaled dual ``U``.

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
    def update(self, x: Tensor, project: Callable[[Tensor], Tensor], growth: float = 1.0) -> None:
        """``Z <- project(x + U)``, ``U <- U + x - Z``, ``rho <- growth rho``."""
        self.nearest.copy_(project(x + self.dual))
        self.dual.add_(x - self.nearest)
        self.rho.mul_(growth)


def attach(model: nn.Module, name: str, step: nn.Module) -> None:
    """Let a tensor (``features.0.weight``) pass a parametrization, in place; in all layers that share the tensor."""
    owner, _, key = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), key)
    homes = [(part, other) for part in model.modules() for other, held in part._parameters.items() if held is tensor]
    for layer, other in homes:
        parametrize.register_parametrization(layer, other, step, unsafe=True)


def stored_name(name: str) -> str:
    """Name of the stored tensor behind a tensor that passes parametrizations."""
    owner, _, tensor = name.rpartition(".")
    return f"{owner}.parametrizations.{tensor}.original".lstrip(".")


def stored(model: nn.Module, kind: type) -> dict[str, Tensor]:
    """Name of each tensor that passes a parametrization of this kind -> the stored tensor."""
    return {name: model.get_parameter(stored_name(name)).detach() for name in steps_of(model, kind)}


def with_state(plain: nn.Module, parametrized: nn.Module) -> nn.Module:
    """A copy of a plain network with the stored weights and the statistics of the same network, parametrized."""
    copied, state = parametrizations.copied(plain), parametrized.state_dict()
    sources = {name: stored_name(name) for name in copied.state_dict()}
    copied.load_state_dict({name: state[source if source in state else name] for name, source in sources.items()})
    return copied
