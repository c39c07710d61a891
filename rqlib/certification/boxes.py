"""Interval bound propagation (IBP): from a box of images to a box of logits, one layer after the other.

Source: Gowal et al. 2018, arXiv 1810.12715; Mirman et al. 2018.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.certification import programs
from rqlib.certification.programs import Step


class Box(NamedTuple):
    """Every value lies between ``low`` and ``high``, tensors (B, ...)."""

    low: Tensor
    high: Tensor


def of_images(x: Tensor, epsilon: float) -> Box:
    """The L-infinity ball of a radius around images (B, C, H, W), in pixels, inside [0, 1] pixel by pixel.

    Raises:
        ValueError: a radius outside [0, 1].
    """
    check_radius(epsilon)
    return Box((x - epsilon).clamp_(min=0), (x + epsilon).clamp_(max=1))


def check_radius(epsilon: float) -> None:
    """Raise unless a radius lies in [0, 1]."""
    if not 0 <= epsilon <= 1:
        raise ValueError(f"expected a radius epsilon in [0, 1], in pixels, got {epsilon}")


def propagate(steps: list[Step], box: Box) -> list[Box]:
    """The box of the result of every step, for a box of images. Differentiable.

    A layer maps center c and radius r to ``W c + b`` and ``|W| r``. Steps that increase or decrease with each of their
    values, such as ReLU, max-pool, clipping and rounding to a number format, are applied to both ends, exactly.
    """
    first = programs.start(steps)
    found = [box] + [_scaled(steps[1 : first + 1], box)] * first
    for step in steps[first + 1 :]:
        found.append(_behind(step, [found[source] for source in step.sources]))
    return found


def _scaled(steps: list[Step], box: Box) -> Box:
    """The box behind affine functions of single values, all at once."""
    if not steps:
        return box

    def apply(x: Tensor) -> Tensor:
        for step in steps:
            x = step.apply(x)
        return x

    constant, pull = torch.func.vjp(apply, torch.zeros_like(box.low[:1]))
    (slope,) = pull(torch.ones_like(constant))
    ends = [torch.addcmul(constant, end, slope) for end in box]
    return Box(*ends) if (slope >= 0).all() else Box(torch.minimum(*ends), torch.maximum(*ends))


def refined(steps: list[Step], found: list[Box], changed: int) -> list[Box]:
    """The boxes after that of one step has become smaller: what follows from it is intersected with what was known."""
    again = list(found)
    for number in range(changed + 1, len(steps)):
        new, known = _behind(steps[number], [again[source] for source in steps[number].sources]), found[number]
        again[number] = Box(torch.maximum(new.low, known.low), torch.minimum(new.high, known.high))
    return again


def _behind(step: Step, sources: list[Box]) -> Box:
    """The box of a step's result."""
    if step.kind == programs.LAYER:
        return _through_layer(step.module, sources[0])
    ends = [step.apply(*end) for end in zip(*sources, strict=True)]
    if step.kind in programs.INCREASING:
        return Box(*ends)
    return Box(torch.minimum(*ends), torch.maximum(*ends))


def margins(steps: list[Step], boxes: list[Box], y: Tensor) -> Tensor:
    """Lower bounds (B, K) of the margins ``z_y - z_j``; infinite at j = y. The boxes are those of `propagate`.

    The differences are merged into the last linear layer: ``(W_y - W_j) h`` is bounded, not two logits. Where something
    follows that layer (a rounding of the logits), the ends of the logits are subtracted, which is looser.
    """
    last = steps[-1]
    if last.kind == programs.LAYER and isinstance(last.module, nn.Linear):
        found = _merged(last.module, boxes[last.sources[0]], y)
    else:
        logits = boxes[-1]
        found = logits.low.gather(1, y[:, None]) - logits.high
    return found.scatter(1, y[:, None], torch.inf)


def _merged(layer: nn.Linear, box: Box, y: Tensor) -> Tensor:
    center = torch.lerp(*box, 0.5)
    radius = box.high - center
    rows = layer.weight[y][:, None] - layer.weight  # (B, K, n)
    found = (torch.bmm(center.unsqueeze(1), rows.mT) - torch.bmm(radius.unsqueeze(1), rows.abs().mT)).squeeze(1)
    return found if layer.bias is None else found + layer.bias[y][:, None] - layer.bias


def _through_layer(layer: nn.Module, box: Box) -> Box:
    center = torch.lerp(*box, 0.5)
    radius, weight, bias = box.high - center, layer.weight, layer.bias
    if isinstance(layer, nn.Linear):
        center, radius = F.linear(center, weight, bias), F.linear(radius, weight.abs())
    else:
        center, radius = layer._conv_forward(center, weight, bias), layer._conv_forward(radius, weight.abs(), None)
    if torch.is_grad_enabled():
        return Box(center - radius, center + radius)
    return Box(center - radius, center.add_(radius))  # one array less
