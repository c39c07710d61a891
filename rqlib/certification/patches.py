"""Closer bounds of the inputs of convolutional layers: each value depends on a small patch of the image only.

Going back from one value of a convolution, its coefficients are a patch of what the convolution reads, not a whole
image. All values of a step have patches of the same size, so they go back together, through convolutions of patches.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.certification import lines, programs
from rqlib.certification.boxes import Box
from rqlib.certification.programs import Step

COEFFICIENTS = 2**19
"""So many coefficients of one step are held at a time."""


class _Places(NamedTuple):
    """Where the patches (U, C, h, w) of some values lie: images (U,), rows (U, h) and columns (U, w) of pixels."""

    images: Tensor
    rows: Tensor
    columns: Tensor

    def of(self, signal: Tensor) -> Tensor:
        """The patches of a signal (B, C, H, W); 0 outside of it."""
        height, width = signal.shape[2:]
        rows, columns = self.rows.clamp(0, height - 1), self.columns.clamp(0, width - 1)
        found = signal.permute(0, 2, 3, 1)[self.images[:, None, None], rows[:, :, None], columns[:, None, :]]
        return found.permute(0, 3, 1, 2) * self.inside(height, width)

    def inside(self, height: int, width: int) -> Tensor:
        """Which places lie inside an image of this size, bool (U, 1, h, w)."""
        rows, columns = ((at >= 0) & (at < size) for at, size in ((self.rows, height), (self.columns, width)))
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def fit(steps: list[Step], number: int) -> bool:
    """Whether a step is a convolution behind plain convolutions and curves of single values only."""
    first = programs.start(steps)
    if not _is_plain(steps[number]):
        return False
    while number > first:
        step = steps[number]
        if not (_is_plain(step) or step.kind in (programs.RELU, programs.CLIP, programs.ROUND)):
            return False
        (number,) = step.sources
    return number == first


def _is_plain(step: Step) -> bool:
    layer = step.module
    return (
        step.kind == programs.LAYER
        and isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def bounds(
    steps: list[Step], found: list[Box], number: int, owners: Tensor, units: Tensor, slope: str
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (U,) of values of a step, which are given by their images and their flat indices."""
    size = max(1, COEFFICIENTS // _largest(steps, number) // 2)
    ends = [
        _of_some(steps, found, number, some, which, slope)
        for some, which in zip(owners.split(size), units.split(size), strict=True)
    ]
    lower, upper = zip(*ends, strict=True)
    return torch.cat(lower), torch.cat(upper)


def _largest(steps: list[Step], number: int) -> int:
    """Coefficients of the largest patch."""
    height = width = largest = 1
    while number > programs.start(steps):
        step = steps[number]
        (number,) = step.sources
        if step.kind == programs.LAYER:
            (kh, kw), (sh, sw) = step.module.kernel_size, step.module.stride
            height, width = (height - 1) * sh + kh, (width - 1) * sw + kw
            largest = max(largest, steps[number].shape[0] * height * width)
    return largest


def _of_some(steps: list[Step], found: list[Box], number: int, owners: Tensor, units: Tensor, slope: str):
    first, layer = programs.start(steps), steps[number].module
    channels, rest = units // (steps[number].shape[1] * steps[number].shape[2]), units
    rows, columns = rest // steps[number].shape[2] % steps[number].shape[1], rest % steps[number].shape[2]
    images, owners = owners.unique_consecutive(return_inverse=True)
    places = _behind(layer, _Places(owners, rows[:, None], columns[:, None]))
    below = above = layer.weight[channels]  # coefficients of the lower and of the upper bound
    low = high = 0.0 if layer.bias is None else layer.bias[channels]
    (number,) = steps[number].sources
    while number > first:
        step, layer = steps[number], steps[number].module
        if step.kind == programs.LAYER:
            below, above = (a * places.inside(*step.shape[1:]) for a in (below, above))
            if layer.bias is not None:
                low, high = (end + a.sum((2, 3)) @ layer.bias for end, a in ((low, below), (high, above)))
            below, above = (F.conv_transpose2d(a, layer.weight, stride=layer.stride) for a in (below, above))
            places = _behind(layer, places)
        else:
            box = Box(*(end[images] for end in found[step.sources[0]]))
            under, over = ([places.of(part) for part in line] for line in lines.around(step, box, slope))
            below, added = _through(below, under, over)
            above, removed = _through(above, over, under)
            low, high = low + added, high + removed
        (number,) = step.sources
    center, radius = (
        places.of(end[images])
        for end in ((found[first].high + found[first].low) / 2, (found[first].high - found[first].low) / 2)
    )
    low = low + ((below * center) - below.abs() * radius).flatten(1).sum(1)
    high = high + ((above * center) + above.abs() * radius).flatten(1).sum(1)
    return low, high


def _through(a: Tensor, line, opposite) -> tuple[Tensor, Tensor]:
    """Coefficients in front of a curve, and what constants add: positive ones take the line, others the opposite."""
    positive, negative = a.clamp(min=0), a.clamp(max=0)
    constant = (positive * line[1] + negative * opposite[1]).flatten(1).sum(1)
    return positive * line[0] + negative * opposite[0], constant


def _behind(layer: nn.Conv2d, places: _Places) -> _Places:
    """The places that a convolution reads for those of its result, which follow each other."""
    ends = []
    for at, kernel, stride, padding in zip(places[1:], layer.kernel_size, layer.stride, layer.padding, strict=True):
        size = (at.shape[1] - 1) * stride + kernel
        ends.append(at[:, :1] * stride - padding + torch.arange(size, device=at.device))
    return _Places(places.images, *ends)
