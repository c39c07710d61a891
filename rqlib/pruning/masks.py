"""Masks that say which weights of a network stay: made by magnitude, applied, and checked.

All weights of convolutions and linear layers can be removed, except for those of transposed convolutions and of layers
with a forward pass of their own (`layers.other_weighted_layers`), of which a warning tells. Biases and BatchNorm stay,
except for those of a channel that is removed as a whole. ``kept`` = 1 - sparsity is the fraction of weights that stay.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import layers, parametrizations, projections
from rqlib.core.entry import classifier
from rqlib.core.parametrizations import steps_of
from rqlib.core.vocabulary import did_you_mean
from rqlib.pruning import channels
from rqlib.pruning.parametrizations import Masked, attach
from rqlib.pruning.pools import Channels

Masks = dict[str, Tensor]
"""Name of a tensor (``features.0.weight``) -> bool mask, True is kept, of a shape that broadcasts against it."""
Weights = dict[str, Tensor]
"""Name of a convolution's or linear layer's weight -> its values."""
Rule = Callable[[Weights, float], Masks]
"""(weights, kept) -> masks. ``weight * mask`` is the projection of a weight onto the sparse ones."""


def keep_weights(weight: Tensor, kept: float) -> Tensor:
    """Mask of the ``round(kept N)`` weights of largest magnitude, of N."""
    return projections.largest(weight, projections.kept_count(kept, weight.numel()))


def keep_columns(weight: Tensor, kept: float) -> Tensor:
    """Mask of the columns of largest norm, of shape (1, I, ...). A column is the same position in all filters."""
    return keep_weights(projections.column_norms(weight), kept)


def keep_two_of_four(weight: Tensor, kept: float) -> Tensor:
    """Mask of the two largest of every four consecutive input channels."""
    if kept != 0.5:
        raise ValueError(f"expected kept 0.5 with structure 2:4, which keeps half of the weights, got {kept}")
    return projections.n_of_m(weight, 2, 4)


ENTRIES = {"weights": keep_weights, "columns": keep_columns, "2:4": keep_two_of_four}
"""Structures of which each layer is masked by itself: name -> (weight, kept) -> mask."""
STRUCTURES = (*ENTRIES, "filters")
SCOPES = ("layer", "global")


def rule(model: nn.Module, structure: str = "weights", *, scope: str = "layer", image: Tensor | None = None) -> Rule:
    """The rule by which a structure of a network is masked.

    ``filters`` means whole channels: filters with their biases and their BatchNorm, and with everything that is tied
    to them (`channels`). In every pool of C competing channels ``round(kept C)`` stay, at least one: those of largest
    norm over all filters that write to them. The channels of the logits all stay.

    Args:
        structure: weights, columns, filters or 2:4.
        scope: the fraction holds in each ``layer``, or over all together (``global``, for single weights only).
        image: for ``filters``: one image (1, C, H, W), of which only the shape matters.

    Raises:
        ValueError: unknown structure or scope; no image for filters; the network cannot be traced.
    """
    if structure not in STRUCTURES:
        raise ValueError(did_you_mean("structure", structure, STRUCTURES))
    if scope not in SCOPES or (scope == "global" and structure != "weights"):
        raise ValueError(f"expected scope layer, or global with structure weights, got {scope!r} with {structure!r}")
    if structure == "filters":
        return partial(_channel_masks, channels.find(model, image), model)
    return _over_all_layers if scope == "global" else partial(_layer_by_layer, ENTRIES[structure])


def magnitude_masks(
    model: nn.Module, kept: float, *, structure: str = "weights", scope: str = "layer", image: Tensor | None = None
) -> Masks:
    """Masks that keep the weights, or whole structures, of largest magnitude (Han et al. 2015, arXiv 1506.02626).

    A warning names the layers that are left without any weight. Other arguments as for `rule`.

    Raises:
        ValueError: as `rule`; kept is not above 0 and at most 1; the network is already pruned.
    """
    model = classifier(model)
    masks = rule(model, structure, scope=scope, image=image)(dense_weights(model, kept), kept)
    _say_empty(kept, [name for name, mask in masks.items() if not mask.any()])
    return masks


def dense_weights(model: nn.Module, kept: float) -> Weights:
    """The weights that can be removed. A weight that several layers share has the name of the first.

    A warning names the layers that are left alone (`layers.other_weighted_layers`).

    Raises:
        ValueError: a weight is parametrized, or fewer of its values are not 0 than the fraction ``kept`` would keep.
    """
    weights = {}
    for name, layer in _unshared(model):
        weight = _plain(name, layer)
        nonzero = int(weight.count_nonzero())
        if nonzero < projections.kept_count(kept, weight.numel()):
            raise ValueError(
                f"{name}: {nonzero:,} of {weight.numel():,} weights are not 0, fewer than kept {kept} would leave: the "
                "network is already pruned; start from the dense checkpoint, or keep less"
            )
        weights[f"{name}.weight"] = weight
    layers.say_others_stay(model)
    return weights


def check_new(model: nn.Module) -> None:
    """Raise a ValueError if a network cannot be new: a weight is parametrized, or some of a layer's weights are 0.

    A layer may begin with nothing but zeros. One zero in a hundred may be drawn by chance.
    """
    for name, layer in _unshared(model):
        weight = _plain(name, layer)
        zeros, count = int((weight == 0).sum()), weight.numel()
        if count / 100 < zeros < count:
            raise ValueError(
                f"{name}: {zeros:,} of {count:,} weights are 0: the network is already pruned; start from the dense "
                "checkpoint, or from new weights"
            )


def apply_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of a network in which these tensors are masked (`Masked`); a ValueError refuses masks of another one.

    A tensor that several layers share, whose mask bears the name of the first, is masked in all of them.
    """
    masked = parametrizations.copied(classifier(model))
    shapes = {name: parameter.shape for name, parameter in masked.named_parameters()}
    for name, mask in masks.items():
        if name not in shapes or not _fits(mask.shape, shapes[name]):
            found = f"a tensor {tuple(shapes[name])}" if name in shapes else "no such tensor"
            shape = tuple(mask.shape)
            raise ValueError(f"mask of {name} {shape}: found {found}; masks belong to the network they are of")
        attach(masked, name, Masked(mask))
    return masked


def achieved(model: nn.Module) -> pandas.DataFrame:
    """How much of a network stays: one row per convolution or linear layer with a weight of its own.

    Columns: layer, weights, stay (how many its mask keeps), nonzero, kept (the fraction stay / weights).
    """
    masks, rows = {name: step.mask for name, step in steps_of(model, Masked).items()}, []
    for name, layer in _unshared(model):
        mask = masks.get(f"{name}.weight", torch.ones((), dtype=torch.bool))
        count, nonzero = int(mask.expand_as(layer.weight).sum()), int(layer.weight.count_nonzero())
        rows.append((name, layer.weight.numel(), count, nonzero))
    frame = pandas.DataFrame(rows, columns=["layer", "weights", "stay", "nonzero"])
    return frame.assign(kept=frame.stay / frame.weights)


def check(model: nn.Module, kept: float, *, structure: str = "weights", scope: str = "layer") -> pandas.DataFrame:
    """`achieved` of a masked network, after checking it: an AssertionError says what is wrong.

    What is masked must be 0. Of N single weights exactly ``round(kept N)`` must stay, in each layer or over all layers;
    of other structures the number is not checked. A warning names the layers that are left without any weight.
    """
    found = achieved(model)
    assert (found.nonzero <= found.stay).all(), f"weights outside the masks are not 0:\n{found}"
    if scope == "global":
        total = projections.kept_count(kept, int(found.weights.sum()))
        assert found.stay.sum() == total, f"expected {total:,} weights overall, got\n{found}"
    elif structure == "weights":
        wanted = found.weights.map(partial(projections.kept_count, kept))
        assert (found.stay == wanted).all(), f"expected round({kept} N) weights in every layer, got\n{found}"
    _say_empty(kept, found[found.stay == 0].layer.tolist())
    return found


def _plain(name: str, layer: nn.Module) -> Tensor:
    """The weight of a layer; a ValueError refuses a parametrized one."""
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError(f"{name}: expected a plain weight, found a parametrized one; parametrizations.bake first")
    return layer.weight.detach()


def _unshared(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every convolution and linear layer, without those whose weight an earlier one holds."""
    seen: set[int] = set()
    for name, layer in layers.weighted_layers(model):
        masked = parametrize.is_parametrized(layer, "weight")
        stored = id(layer.parametrizations.weight.original if masked else layer.weight)
        if stored not in seen:
            yield name, layer
        seen.add(stored)


def _say_empty(kept: float, empty: list[str]) -> None:
    """Warn of layers without any weight."""
    if empty:
        warnings.warn(f"kept {kept} leaves no weight in {', '.join(empty)}", stacklevel=3)


def channel_norms(weights: Weights, found: Channels) -> Tensor:
    """Euclidean norm of all filters that write to each channel together, (number of channels,)."""
    squares = torch.zeros(len(found.fixed))
    for name, rows in found.writes.items():
        if f"{name}.weight" in weights:
            squares.index_add_(0, rows, projections.filter_norms(weights[f"{name}.weight"]).square().float().cpu())
    return squares.sqrt()


def best_channels(norms: Tensor, pools: list[Tensor], kept: float) -> Tensor:
    """Whether each channel stays, bool: in each pool of C channels the ``round(kept C)`` largest, at least one.

    Channels that are in no pool stay.
    """
    stays = torch.ones_like(norms, dtype=torch.bool)
    for numbers in pools:
        count = max(1, projections.kept_count(kept, len(numbers)))
        stays[numbers] = projections.largest(norms[numbers], count)
    return stays


def channel_rows(model: nn.Module, found: Channels) -> dict[str, Tensor]:
    """Name of each tensor that writes channels of a pool -> the numbers of all of its channels, to broadcast."""
    pooled = torch.zeros_like(found.fixed)
    for numbers in found.pools():
        pooled[numbers] = True
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # shared ones: that of the first
    return {
        names[id(parameter)]: rows.view(-1, *[1] * (parameter.dim() - 1))
        for layer, rows in found.writes.items()
        if pooled[rows].any()
        for parameter in model.get_submodule(layer).parameters(recurse=False)
    }


def _channel_masks(found: Channels, model: nn.Module, weights: Weights, kept: float) -> Masks:
    stays, device = best_channels(channel_norms(weights, found), found.pools(), kept), next(model.parameters()).device
    return {name: stays[rows].to(device) for name, rows in channel_rows(model, found).items()}


def _layer_by_layer(keep: Callable[[Tensor, float], Tensor], weights: Weights, kept: float) -> Masks:
    return {name: keep(weight, kept) for name, weight in weights.items()}


def _over_all_layers(weights: Weights, kept: float) -> Masks:
    count = projections.kept_count(kept, sum(weight.numel() for weight in weights.values()))
    return dict(zip(weights, projections.largest_of_all(list(weights.values()), count), strict=True))


def _fits(mask: torch.Size, tensor: torch.Size) -> bool:
    return len(mask) == len(tensor) and all(m in (1, t) for m, t in zip(mask, tensor, strict=True))
