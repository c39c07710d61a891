"""Whole channels of a network: found, and removed where they are 0 for every image."""

import warnings

import torch
from torch import Tensor, nn

from rqlib.core import derived, layers, parametrizations, runtime
from rqlib.core.entry import classifier
from rqlib.pruning import following
from rqlib.pruning.pools import Channels

_COMPARED = 4  # images of noise, on which the smaller network is compared with the one that it comes from


def find(model: nn.Module, image: Tensor | None) -> Channels:
    """The numbers of the channels of a plain network. One warning counts those that must stay, and says why.

    Only the shape of the image (1, C, H, W) matters. A channel must stay if it passes an operation that mixes
    channels, or one that does not map 0 to 0 and is followed by zero padding.

    Raises:
        ValueError: the image is missing; torch.fx cannot trace the network; not one channel can be removed.
    """
    found = _followed(model, image)
    if why := found.why():
        warnings.warn(f"structure filters: {why}", stacklevel=3)
    return found


@torch.no_grad()
def remove(model: nn.Module, image: Tensor) -> nn.Module:
    """A copy without the channels that are 0 for every image; it computes the same logits, which is checked.

    A channel is removed if every filter that writes to it, its bias and its BatchNorm are 0. Where an activation makes
    a constant of its zeros, the constant becomes part of the next layer's bias. Where all channels of a group would be
    removed, one of them stays. Layers that share weights share them afterwards, too. The weights must be plain
    (`parametrizations.bake`); a warning says if there is nothing to remove. Image as for `find`.

    Raises:
        ValueError: as `find`; `derived.NotEqual`, if the smaller network computes something else.
    """
    model = classifier(model)
    channels, removed = _followed(model, image), parametrizations.copied(model)
    stays = _staying(model, channels)
    if stays.all():
        warnings.warn("no channel is 0 for every image: nothing is removed; mask filters first", stacklevel=2)
    done: set[int] = set()
    for name, numbers in channels.reads.items():
        layer, outputs = removed.get_submodule(name), stays[channels.writes[name]]
        _fold(layer, channels.resting[name] * ~stays[numbers])
        _shrink(layer, outputs, stays[numbers], done)
    for name, (axis, numbers) in channels.carried.items():
        _cut(removed, name, axis, stays[numbers], done)
    noise = torch.rand(_COMPARED, *image.shape[1:], generator=runtime.rng(0)).to(next(model.parameters()).device)
    derived.check(model, removed, noise, what="removing channels")
    return removed


def _followed(model: nn.Module, image: Tensor | None) -> Channels:
    if image is None:
        raise ValueError("structure filters follows the channels through the network: expected image (1, C, H, W)")
    try:
        found = following.follow(model, image)
    except ValueError as error:
        raise ValueError(f"{error}; structures weights and columns need no graph") from error
    if not found.pools():
        why = found.why() or "all of them are those of the image or of the logits"
        raise ValueError(
            f"{type(model).__name__}: expected channels that can be removed, found none: {why}; take structure weights "
            "or columns, which every network has"
        )
    return found


def _staying(model: nn.Module, channels: Channels) -> Tensor:
    """For each number, whether its channels stay, bool."""
    stays = channels.fixed.clone()
    for name, numbers in channels.writes.items():
        layer = model.get_submodule(name)
        parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        stays[numbers] |= torch.stack([p.flatten(1).any(1) if p.dim() > 1 else p != 0 for p in parameters]).any(0).cpu()
    for numbers in channels.pools():
        stays[numbers[0]] |= not stays[numbers].any()
    return stays


def _fold(layer: nn.Module, constants: Tensor) -> None:
    """Add to a layer's bias, in place, what it makes of inputs that are these constants everywhere, (I,)."""
    if not constants.any():
        return
    weight = layer.weight.flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight
    more = weight @ constants.to(weight)
    layer.bias = nn.Parameter(more if layer.bias is None else layer.bias + more, layer.weight.requires_grad)


def _shrink(layer: nn.Module, outputs: Tensor, inputs: Tensor, done: set[int]) -> None:
    """Keep only these outputs and inputs of a convolution or linear layer (bool masks), in place."""
    if outputs.all() and inputs.all():
        return
    depthwise = isinstance(layer, layers.CONVOLUTIONS) and layer.groups == len(inputs) > 1
    for tensor in layer.parameters(recurse=False):
        if id(tensor) in done:
            continue  # shared with a layer that is smaller already
        done.add(id(tensor))
        kept = tensor.data[outputs.to(tensor.device)]
        tensor.data = kept[:, inputs.to(tensor.device)] if tensor.dim() > 1 and not depthwise else kept
    written, read = int(outputs.sum()), int(inputs.sum())
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = read, written
    else:
        layer.in_channels, layer.out_channels = read, written
        layer.groups = read if depthwise else layer.groups


def _cut(model: nn.Module, name: str, axis: int, stays: Tensor, done: set[int]) -> None:
    """Keep only these values of a tensor that has one for each channel, in place."""
    owner, _, key = name.rpartition(".")
    layer = model.get_submodule(owner)
    tensor = getattr(layer, key)
    if id(tensor) not in done:
        done.add(id(tensor))
        tensor.data = tensor.data.index_select(axis, stays.nonzero().squeeze(1).to(tensor.device))
    for count in ("num_features", "num_parameters"):
        if hasattr(layer, count):
            setattr(layer, count, int(stays.sum()))
