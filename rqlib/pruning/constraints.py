"""The two constraints of a compressed network: at most k nonzeros overall, at most 2^b distinct ones per tensor.

The first is kept by projection after every step of the optimizer. The second is approached by ADMM: each stored tensor
is pulled to one with few distinct values, which takes its place in the end.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rqlib.core import codebooks, parametrizations, projections
from rqlib.core.parametrizations import steps_of
from rqlib.pruning import factors
from rqlib.pruning.factors import Factorized
from rqlib.pruning.parametrizations import Anchored

RHO = 0.1
EVERY = 10
"""Steps of the optimizer from one codebook to the next."""


def budget(ratio: float, weights: int) -> int:
    """k = ``floor(ratio weights)``, the number of nonzeros that a network may have.

    Raises:
        ValueError: the ratio is not above 0 and at most 1, or keeps nothing.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"expected a ratio above 0 and at most 1 (nonzeros / weights), got {ratio}")
    count = math.floor(ratio * weights + 1e-6)  # .29 of 100 are 29, although .29 * 100 < 29 in floating point
    if not count:
        raise ValueError(f"expected a ratio that keeps a weight, got {ratio} of {weights:,} weights")
    return count


@torch.no_grad()
def project(model: nn.Module, *, count: int) -> None:
    """Keep the ``count`` largest entries of all stored tensors together (`factors.tensors`), in place."""
    stored = list(factors.tensors(model).values())
    for tensor, mask in zip(stored, projections.largest_of_all(stored, count), strict=True):
        tensor.mul_(mask)


def few_values(x: Tensor, bits: int) -> Tensor:
    """The nearest tensor with at most 2^bits distinct values that are not 0 (`core.codebooks`)."""
    return codebooks.nearest(x, codebooks.codebook(x, 2**bits))


@dataclass(frozen=True)
class Codebooks:
    """ADMM toward few distinct values, as hooks of a training: ``penalty`` and ``after_step``.

    Starts at ``Z = theta``, ``U = 0``. The penalty is ``RHO / 2 ||theta - Z + U||^2``. After every step theta is
    projected to ``count`` nonzeros; after every `EVERY` steps but the first, ``Z <- few values(theta + U)`` where theta
    is not 0, and ``U <- U + theta - Z``. Z, U and the number of steps are part of the network's state dict.

    Raises:
        ValueError: bits outside 1..16.
    """

    count: int
    bits: int

    def __post_init__(self):
        check_bits(self.bits)

    def attached(self, model: nn.Module) -> nn.Module:
        """A copy of a factorized network that holds Z, U and the number of steps."""
        made = parametrizations.copied(model)
        for step, stored in _factorized(made):
            step.anchors.extend(Anchored(tensor, RHO) for tensor in stored)
            step.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=stored[0].device))
        return made

    @staticmethod
    def penalty(model: nn.Module) -> Tensor:
        """``RHO / 2 ||theta - Z + U||^2`` over all tensors."""
        return torch.stack([anchor.penalty(x) for anchor, x in _anchored(model)]).sum()

    def after_step(self, model: nn.Module) -> None:
        """Project theta, and move Z and U if it is time."""
        project(model, count=self.count)
        for step, stored in _factorized(model):
            step.steps += 1
            if step.steps > 1 and (step.steps - 1) % EVERY == 0:
                for anchor, x in zip(step.anchors, stored, strict=True):
                    anchor.update(x.detach(), partial(self._nearest, x))

    @torch.no_grad()
    def settled(self, model: nn.Module) -> nn.Module:
        """A copy with ``few values(theta + U)`` in the place of theta, without Z, U and the number of steps."""
        made = parametrizations.copied(model)
        for anchor, x in _anchored(made):
            x.copy_(self._nearest(x, x + anchor.dual))
        for step, _ in _factorized(made):
            step.anchors = nn.ModuleList()
            del step.steps
        return made

    @torch.no_grad()
    def _nearest(self, theta: Tensor, x: Tensor) -> Tensor:
        """The nearest tensor to x with few distinct values that is 0 wherever theta is."""
        return few_values(x * (theta != 0), self.bits)


def check_bits(bits: int) -> None:
    """Raise a ValueError unless bits is 1 to 16."""
    if not 1 <= bits <= 16:
        raise ValueError(f"expected 1 to 16 bits for the values of a tensor, got {bits}; None quantizes nothing")


@torch.no_grad()
def check(model: nn.Module, *, count: int, bits: int | None, title: str) -> nn.Module:
    """The network itself, after asserting that both constraints hold; a warning names layers without any weight."""
    stored = factors.tensors(model)
    nonzero = sum(int(tensor.count_nonzero()) for tensor in stored.values())
    assert nonzero <= count, f"{title}: expected at most {count:,} nonzeros, got {nonzero:,}"
    for name, tensor in stored.items() if bits is not None else ():
        distinct = int(tensor.unique().count_nonzero())
        assert distinct <= 2**bits, f"{title}: expected at most {2**bits} distinct values, got {distinct} in {name}"
    empty = [name for name in factors.layer_names(model) if not model.get_submodule(name).weight.any()]
    if empty:
        warnings.warn(f"{title} leaves no weight in {', '.join(empty)}", stacklevel=2)
    return model


def _factorized(model: nn.Module) -> Iterator[tuple[Factorized, list[nn.Parameter]]]:
    """(parametrization, B, A and C) of every factorized layer."""
    for name, step in steps_of(model, Factorized).items():
        yield step, factors.stored_factors(model.get_submodule(name.removesuffix(".weight")))


def _anchored(model: nn.Module) -> Iterator[tuple[Anchored, nn.Parameter]]:
    """(Z and U, tensor) of every stored tensor that is pulled."""
    return ((anchor, x) for step, stored in _factorized(model) for anchor, x in zip(step.anchors, stored, strict=True))
