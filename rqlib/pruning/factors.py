"""Weights as a product and a remainder, ``W = B A + C``: a parametrization, and the tensors that a constraint counts.

Convolutions with groups, layers that share a weight, transposed convolutions, and layers with a forward pass of their
own are left alone.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import layers, parametrizations
from rqlib.core.parametrizations import steps_of
from rqlib.models import checkpoints

Factors = tuple[Tensor, Tensor, Tensor]
"""left B, right A and rest C of a layer."""

NAMES = ("left", "right", "rest")


class Factorized(nn.Module):
    """The weight of a convolution or linear layer computed from three stored tensors B, A and C.

    With W as a matrix (m, n), a row for each output:

    - ``rank`` None, start at identity: ``W = B (A + I) + C`` with B (m, n), A (n, n), C (m, n) if n <= m, else
      ``W = (B + I) A + C`` with B (m, m), A (m, n). At the start B = W (or A = W), and the other two are 0.
    - otherwise ``W = B A + C`` with B (m, rank), A (rank, n). At the start C = W.

    Source: Gui et al. 2019, Model compression with adversarial robustness (ATMC), arXiv 1902.03538.
    """

    def __init__(self, weight: Tensor, rank: int | None = None):
        super().__init__()
        self.shape, self.rank = tuple(weight.shape), rank
        self.anchors = nn.ModuleList()

    def forward(self, left: Tensor, right: Tensor, rest: Tensor) -> Tensor:
        matrix = left @ right + rest
        if self.rank is None:  # B (A + I) = B A + B
            matrix = matrix + (left if left.shape == rest.shape else right)
        return matrix.view(self.shape)

    def right_inverse(self, weight: Tensor) -> Factors:
        """What is stored at the start for a weight, which they give exactly."""
        matrix = weight.flatten(1).clone()
        rows, columns = matrix.shape
        if self.rank is not None:
            return matrix.new_zeros(rows, self.rank), matrix.new_zeros(self.rank, columns), matrix
        if columns <= rows:
            return matrix, matrix.new_zeros(columns, columns), torch.zeros_like(matrix)
        return matrix.new_zeros(rows, rows), matrix, torch.zeros_like(matrix)


def factorized(model: nn.Module, ranks: Mapping[str, int | None]) -> nn.Module:
    """A copy of a network in which the named layers are `Factorized`, each with its rank; it computes the same.

    Raises:
        ValueError: no such convolution or linear layer, or it shares its weight; a rank above the smaller side of it.
    """
    made = parametrizations.copied(model)
    eligible = dict(_eligible(made))
    for name, rank in ranks.items():
        if name not in eligible:
            raise ValueError(
                "expected a convolution without groups or a linear layer, with a weight of its own, to factorize, "
                f"found none: {name}"
            )
        layer = eligible[name]
        most = min(layer.weight.flatten(1).shape)
        if rank is not None and not 0 <= rank <= most:
            raise ValueError(
                f"expected a rank of at most {most} for {name}, the smaller side of its weight, got {rank}"
            )
        parametrize.register_parametrization(layer, "weight", Factorized(layer.weight, rank))
    return made


checkpoints.CHANGES["factorized"] = factorized


@torch.no_grad()
def with_factors(model: nn.Module, factors: Mapping[str, Factors]) -> nn.Module:
    """A copy of a network in which the named layers have these factors B (m, r), A (r, n), C (m, n)."""
    made = factorized(model, {name: left.shape[1] for name, (left, _, _) in factors.items()})
    for name, values in factors.items():
        for stored, value in zip(stored_factors(made.get_submodule(name)), values, strict=True):
            stored.copy_(value)
    return made


def ranks_of(model: nn.Module) -> dict[str, int | None]:
    """Name of each layer that is factorized -> its rank, as `factorized` takes it."""
    return {name.removesuffix(".weight"): step.rank for name, step in steps_of(model, Factorized).items()}


def stored_factors(layer: nn.Module) -> list[nn.Parameter]:
    """B, A and C of a layer; its weight, as it is stored, if it is not factorized."""
    if not parametrize.is_parametrized(layer, "weight"):
        return [layer.weight]
    return list(layer.parametrizations.weight.parameters(recurse=False))


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers that are pruned, factorized and quantized: all but those that are left alone."""
    return [name for name, _ in _eligible(model)]


def tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a constraint counts: ``features.0.weight``, or ``features.0.left``, ``.right`` and ``.rest`` -> tensor."""
    found = {}
    for name, layer in _eligible(model):
        stored = stored_factors(layer)
        parts = NAMES if len(stored) > 1 else ("weight",)
        found |= {f"{name}.{part}": tensor for part, tensor in zip(parts, stored, strict=True)}
    return found


def shares(model: nn.Module) -> pandas.DataFrame:
    """Where the nonzeros of a network are: one row per stored tensor of its layers.

    Columns: layer; factor (left, right, rest, or weight if the layer is not factorized); entries; nonzero; share (of
    all nonzeros of the network).
    """
    rows = [(*name.rsplit(".", 1), one.numel(), int(one.count_nonzero())) for name, one in tensors(model).items()]
    frame = pandas.DataFrame(rows, columns=["layer", "factor", "entries", "nonzero"])
    return frame.assign(share=frame.nonzero / max(frame.nonzero.sum(), 1))


def say_left_alone(model: nn.Module) -> None:
    """Warn of convolutions with groups, of layers that share a weight, and of `layers.other_weighted_layers`."""
    alone = [name for name, _ in layers.weighted_layers(model) if name not in layer_names(model)]
    if alone:
        warnings.warn(
            f"left as they are, because they have groups or share the weight of another layer: {', '.join(alone)}",
            stacklevel=3,
        )
    layers.say_others_stay(model)


def _eligible(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every convolution without groups and every linear layer whose weight is its own.

    None of the layers that share a weight is one: a weight that is computed in one of them would no longer be shared.
    """
    owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    for name, layer in layers.weighted_layers(model):
        if getattr(layer, "groups", 1) == 1 and owners[id(stored_factors(layer)[0])] <= 1:
            yield name, layer
