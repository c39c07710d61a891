"""Two lines between which a curve (ReLU, clip, rounding to a number format) stays on an interval of its input."""

import torch
from torch import Tensor, nn

from rqlib.certification import programs
from rqlib.certification.boxes import Box
from rqlib.certification.programs import Step

SLOPES = ("adaptive", "same")
TIE = 1e-6
"""A slope that is below 1/2 by less counts as above it, so that rounding does not choose between the lines."""

Line = tuple[Tensor, Tensor]
"""Slope and constant, in the shape of the box."""


def around(step: Step, box: Box, slope: str) -> tuple[Line, Line]:
    """The line below and the line above a curve on the box of its input.

    Args:
        slope: of the lower line of an uncertain ReLU, with u / (u - l) that of the upper one: ``adaptive`` 1 if that is
            above 1/2, else 0; ``same`` the same.
    """
    if step.kind == programs.RELU:
        return _relu_lines(box, slope)
    first, last = step.limits
    below, above = _clip_lines(box, first, last, slope)
    if step.kind == programs.CLIP:
        return below, above
    ends = step.apply(box.low), step.apply(box.high)
    half = _half_gap(step.module, box.low.clamp(first, last), box.high.clamp(first, last))
    constant = ends[0] == ends[1]
    zero = torch.zeros_like(half)
    return (
        (torch.where(constant, zero, below[0]), torch.where(constant, ends[0], below[1] - half)),
        (torch.where(constant, zero, above[0]), torch.where(constant, ends[0], above[1] + half)),
    )


def _clip_lines(box: Box, first: float, last: float, slope: str) -> tuple[Line, Line]:
    """Those of ``clip(z) = max(z, first) - relu(z - last)``."""
    below = above = (torch.ones_like(box.low), torch.zeros_like(box.low))
    if first > -torch.inf:  # max(z, first) = first + relu(z - first)
        lines = _relu_lines(Box(box.low - first, box.high - first), slope)
        below, above = ((steep, constant + first - steep * first) for steep, constant in lines)
    if last < torch.inf:
        lines = _relu_lines(Box(box.low - last, box.high - last), slope)
        under, over = ((steep, constant - steep * last) for steep, constant in lines)
        below = below[0] - over[0], below[1] - over[1]
        above = above[0] - under[0], above[1] - under[1]
    return below, above


def _relu_lines(box: Box, slope: str) -> tuple[Line, Line]:
    low, high = box.low.clamp(max=0), box.high.clamp(min=0)
    steep = high / (high - low).clamp(min=1e-30)
    zero = torch.zeros_like(steep)
    flat = steep if slope == "same" else (steep > 0.5 - TIE).to(steep)
    return (flat, zero), (steep, -low * steep)


def _half_gap(quantizer: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    """Half of the largest distance between neighboring values of a format between low and high."""
    format, scale = quantizer.format, quantizer.scale
    magnitude = torch.maximum(low.abs(), high.abs()) / scale
    binade = torch.exp2(torch.floor(torch.log2(magnitude.clamp(min=format.smallest_normal))))
    return (binade * 2.0**-format.mantissa_bits).clamp(min=format.hole) * scale / 2
