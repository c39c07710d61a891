"""Which weights of a network stay: masks by magnitude, single weights, columns, filters or N:M; applied, and checked.

All weights of convolutions and linear layers can go; biases and BatchNorm never, but those of a channel that goes.
``kept`` = 1 - sparsity.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import layers, projections
from rqlib.core.parametrizations import steps_of
from rqlib.core.vocabulary import did_you_mean
from rqlib.pruning import channels
from rqlib.pruning.channels import Channels
from rqlib.pruning.parametrizations import Masked

Masks = dict[str, Tensor]
"""Name of a tensor (``features.0.weight``) -> bool mask, True is kept, of a shape that broadcasts against it."""
Weights = dict[str, Tensor]
"""Name of a convolution's or linear layer's weight -> its values."""
Rule = Callable[[Weights, float], Masks]
"""(weights, kept) -> masks; the projection of weights onto the sparse ones is ``weight * mask``."""


def keep_weights(weight: Tensor, kept: float) -> Tensor:
    """Mask of exactly ``round(kept N)`` of N weights, those of largest magnitude."""
    return projections.largest(weight, projections.kept_count(kept, weight.numel()))


def keep_columns(weight: Tensor, kept: float) -> Tensor:
    """Mask of the columns of greatest norm, of shape (1, I, ...); a column is one position of every filter."""
    return keep_weights(projections.column_norms(weight), kept)


def keep_two_of_four(weight: Tensor, kept: float) -> Tensor:
    """Mask of the two largest of every four consecutive input channels."""
    if kept != 0.5:
        raise ValueError(f"expected kept 0.5 with structure 2:4, which keeps half of the weights, got {kept}")
    return projections.n_of_m(weight, 2, 4)


ENTRIES = {"weights": keep_weights, "columns": keep_columns, "2:4": keep_two_of_four}
"""Structures that look at each layer alone: name -> (weight, kept) -> mask."""
STRUCTURES = (*ENTRIES, "filters")
SCOPES = ("layer", "global")


def rule(model: nn.Module, structure: str = "weights", *, scope: str = "layer", image: Tensor | None = None) -> Rule:
    """The rule of a structure for a network.

    ``filters`` are whole channels: filters, their biases and their BatchNorm, those that are tied together as one
    (`channels`). In every pool of competing channels ``round(kept C)`` stay, at least one: those of greatest norm over
    all filters that write to them. The logits' channels all stay.

    Args:
        structure: weights, columns, filters or 2:4.
        scope: the fraction holds in each ``layer``, or over all layers together (``global``, single weights only).
        image: for ``filters``: one image (1, C, H, W), only its shape matters.

    Raises:
        ValueError: unknown structure or scope; no image for filters; the network cannot be traced.
    """
    if structure not in STRUCTURES:
        raise ValueError(did_you_mean("structure", structure, STRUCTURES))
    if scope not in SCOPES or (scope == "global" and structure != "weights"):
        raise ValueError(f"expected scope layer, or global with structure weights, got {scope!r} with {structure!r}")
    if structure == "filters":
        return partial(_channel_masks, find_channels(model, image), model)
    return _over_all_layers if scope == "global" else partial(_layer_by_layer, ENTRIES[structure])


def find_channels(model: nn.Module, image: Tensor | None) -> Channels:
    """The numbers of the network's channels; says that an image is needed."""
    if image is None:
        raise ValueError("structure filters follows the channels through the network: expected image (1, C, H, W)")
    return channels.find(model, image)


def magnitude_masks(
    model: nn.Module, kept: float, *, structure: str = "weights", scope: str = "layer", image: Tensor | None = None
) -> Masks:
    """Masks of what is largest (least weight magnitude pruned; Han et al. 2015, arXiv 1506.02626).

    Arguments as `rule`; ``kept`` above 0 and at most 1.

    Raises:
        ValueError: as `rule`; kept out of range; a network that is already pruned. Where a layer is left empty
            a warning says which.
    """
    masks = rule(model, structure, scope=scope, image=image)(dense_weights(model, kept), kept)
    _say_empty(kept, [name for name, mask in masks.items() if not mask.any()])
    return masks


def filter_masks(model: nn.Module, kept: float, image: Tensor) -> Masks:
    """`magnitude_masks` of whole channels; `pruning.remove_channels` takes the others out of the network."""
    return magnitude_masks(model, kept, structure="filters", image=image)


def dense_weights(model: nn.Module, kept: float) -> Weights:
    """The weights that can go, checked: plain, and not so sparse already that fewer than ``kept`` are not 0."""
    weights = {}
    for name, layer in layers.weighted_layers(model):
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"{name}: expected a plain weight, found a parametrized one; parametrizations.bake first")
        weight, nonzero = layer.weight.detach(), int(layer.weight.count_nonzero())
        if nonzero < projections.kept_count(kept, weight.numel()):
            raise ValueError(
                f"{name}: {nonzero:,} of {weight.numel():,} weights are not 0, fewer than kept {kept} would leave: the "
                "network is already pruned; start from the dense checkpoint, or keep less"
            )
        weights[f"{name}.weight"] = weight
    return weights


def apply_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy in which these tensors are masked (`Masked`).

    Raises:
        ValueError: masks of another network.
    """
    masked = copy.deepcopy(model)
    shapes = {name: parameter.shape for name, parameter in masked.named_parameters()}
    for name, mask in masks.items():
        owner, _, tensor = name.rpartition(".")
        if name not in shapes or not _fits(mask.shape, shapes[name]):
            found = f"a tensor {tuple(shapes[name])}" if name in shapes else "no such tensor"
            raise ValueError(
                f"mask of {name} {tuple(mask.shape)}: found {found}; masks belong to the network they are of"
            )
        parametrize.register_parametrization(masked.get_submodule(owner), tensor, Masked(mask), unsafe=True)
    return masked


def achieved(model: nn.Module) -> pandas.DataFrame:
    """One row a convolution or linear layer: layer, weights, kept (by its mask), nonzero, fraction (kept / weights)."""
    masks, rows = {name: step.mask for name, step in steps_of(model, Masked).items()}, []
    for name, layer in layers.weighted_layers(model):
        mask = masks.get(f"{name}.weight", torch.ones((), dtype=torch.bool))
        count, nonzero = int(mask.expand_as(layer.weight).sum()), int(layer.weight.count_nonzero())
        rows.append((name, layer.weight.numel(), count, nonzero))
    frame = pandas.DataFrame(rows, columns=["layer", "weights", "kept", "nonzero"])
    return frame.assign(fraction=frame.kept / frame.weights)


def check(model: nn.Module, kept: float, *, structure: str = "weights", scope: str = "layer") -> pandas.DataFrame:
    """`achieved` of a masked network, which must keep ``round(kept N)`` single weights, in each layer or over all.

    Where a layer is left empty a warning says which. Of other structures only this, and that what is masked is 0.

    Raises:
        AssertionError: it does not, or weights outside its masks are not 0.
    """
    found = achieved(model)
    assert (found.nonzero <= found.kept).all(), f"weights outside the masks are not 0:\n{found}"
    if scope == "global":
        total = projections.kept_count(kept, int(found.weights.sum()))
        assert found.kept.sum() == total, f"expected {total:,} weights overall, got\n{found}"
    elif structure == "weights":
        wanted = found.weights.map(partial(projections.kept_count, kept))
        assert (found.kept == wanted).all(), f"expected round({kept} N) weights in every layer, got\n{found}"
    _say_empty(kept, found[found.kept == 0].layer.tolist())
    return found


def _say_empty(kept: float, empty: list[str]) -> None:
    """Warn of what is left without a weight."""
    if empty:
        warnings.warn(f"kept {kept} leaves no weight in {', '.join(empty)}", stacklevel=3)


def channel_norms(weights: Weights, found: Channels) -> Tensor:
    """Euclidean norm over all filters that write to a channel, (number of channels,)."""
    squares = torch.zeros(len(found.fixed))
    for name, rows in found.writes.items():
        if f"{name}.weight" in weights:
            squares.index_add_(0, rows, projections.filter_norms(weights[f"{name}.weight"]).square().float().cpu())
    return squares.sqrt()


def best_channels(norms: Tensor, pools: list[Tensor], kept: float) -> Tensor:
    """Of each number, whether it stays: in each pool the ``round(kept C)`` largest, at least one; bool."""
    stays = torch.ones_like(norms, dtype=torch.bool)
    for numbers in pools:
        count = max(1, projections.kept_count(kept, len(numbers)))
        stays[numbers] = projections.largest(norms[numbers], count)
    return stays


def channel_rows(model: nn.Module, found: Channels) -> dict[str, Tensor]:
    """Name of each tensor that writes channels -> their numbers, of a shape that broadcasts against the tensor."""
    pooled = torch.zeros_like(found.fixed)
    for numbers in found.pools():
        pooled[numbers] = True
    return {
        f"{layer}.{name}": rows.view(-1, *[1] * (parameter.dim() - 1))
        for layer, rows in found.writes.items()
        if pooled[rows].all()
        for name, parameter in model.get_submodule(layer).named_parameters(recurse=False)
    }


def _channel_masks(found: Channels, model: nn.Module, weights: Weights, kept: float) -> Masks:
    stays = best_channels(channel_norms(weights, found), found.pools(), kept)
    return {name: stays[rows].to(_device(model)) for name, rows in channel_rows(model, found).items()}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _layer_by_layer(keep: Callable[[Tensor, float], Tensor], weights: Weights, kept: float) -> Masks:
    return {name: keep(weight, kept) for name, weight in weights.items()}


def _over_all_layers(weights: Weights, kept: float) -> Masks:
    count = projections.kept_count(kept, sum(weight.numel() for weight in weights.values()))
    return dict(zip(weights, projections.largest_of_all(list(weights.values()), count), strict=True))


def _fits(mask: torch.Size, tensor: torch.Size) -> bool:
    return len(mask) == len(tensor) and all(m in (1, t) for m, t in zip(mask, tensor, strict=True))
