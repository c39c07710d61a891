"""The weights that a network computes with when a BatchNorm follows: what a penalty on weights has to look at."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rqlib.core import layers

NORMALIZATIONS = (*layers.NORMALIZATIONS, nn.GroupNorm, nn.LayerNorm)
"""What divides a signal by its own spread, and so undoes any scale of the weights before it (InstanceNorm is one)."""


class HiddenLayers(NamedTuple):
    """Names of the convolution and linear layers but the last, and of the BatchNorm behind each (None without one).

    ``loose`` are the normalizations that belong to no layer.
    """

    names: list[str]
    norms: list[str | None]
    loose: list[str]

    def of(self, model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """(layer, BatchNorm or None) of a network with these names."""
        for name, norm in zip(self.names, self.norms, strict=True):
            yield model.get_submodule(name), None if norm is None else model.get_submodule(norm)

    def warn_of_loose(self, penalty: str) -> None:
        """Say which normalizations undo a penalty on the lengths of weights, if any."""
        if self.loose:
            warnings.warn(
                f"penalty {penalty!r} looks at lengths of weights, but {len(self.loose)} normalizations undo them, "
                f"because they could not be folded into the layers before them: {', '.join(self.loose)}; "
                "choose penalty='cosine', which looks at directions alone",
                stacklevel=3,
            )


def hidden_layers(model: nn.Module) -> HiddenLayers:
    """The layers that a penalty looks at: all but the last one computed, which writes the logits.

    Where torch.fx cannot trace the network, the last one defined is taken for it.

    A BatchNorm belongs to a layer if it alone reads the layer's output. All other normalizations are loose: one that
    stands before a layer or behind a sum, or whose input has other readers, and every one of a network that torch.fx
    cannot trace.

    Raises:
        ValueError: the network has no such layer.
    """
    names = [name for name, _ in layers.weighted_layers(model)]
    last = _last(model, names)
    names = [name for name in names if name != last]
    if not names:
        raise ValueError(
            "expected a network with hidden convolution or linear layers to penalize, got "
            f"{type(model).__name__} without any; choose penalty='none'"
        )
    try:
        norms = dict(layers.foldable_pairs(model))
    except ValueError:
        norms = {}
    loose = [
        name
        for name, module in model.named_modules()
        if isinstance(module, NORMALIZATIONS) and name not in norms.values()
    ]
    return HiddenLayers(names, [norms.get(name) for name in names], loose)


def _last(model: nn.Module, names: list[str]) -> str | None:
    """The name of the layer that is computed last; of an untraceable network that of the last one defined."""
    try:
        called = [
            node.target for node in layers.trace(model).nodes if node.op == "call_module" and node.target in names
        ]
    except ValueError:
        called = names
    return next(reversed(called), None)


def folded_weight(layer: nn.Module, norm: nn.Module | None) -> Tensor:
    """``W gamma / sqrt(var + eps)`` of each output channel: the layer's weight with its BatchNorm folded in.

    The gradient reaches W and gamma, not the running variance.
    """
    if norm is None:
        return layer.weight
    scale = torch.rsqrt(norm.running_var.detach() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    return layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
