"""Lower bounds of the margins of a network over a ball of images: four methods, from loose and fast to close and slow.

All return margins (B, K): lower bounds of ``z_y - z_j`` for every image in the L-infinity ball of radius ``epsilon``,
in pixels, inside [0, 1]; infinite at j = y. An image whose margins are all positive is classified as y in the whole
ball.
"""

import torch
from torch import Tensor, nn

from rqlib.certification import boxes, linear_bounds, programs
from rqlib.certification.boxes import Box
from rqlib.certification.programs import Step
from rqlib.core import runtime

SLACK = 1e-5
"""Bounds in float32 are off by rounding: a margin counts only above this share of the largest logit, or of 1."""


def ibp(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float) -> Tensor:
    """Margins by interval bound propagation (Gowal et al. 2018, arXiv 1810.12715); differentiable.

    Args:
        model: pixels to logits; any network of convolutions, linear layers, BatchNorm, ReLU, clips, number formats,
            pools, sums and concatenations.
        x, y: images (B, C, H, W) in [0, 1] and labels (B,).
        epsilon: radius in pixels.

    Raises:
        ValueError: a radius outside [0, 1]; a layer without known bounds (it is named); logits of one class.
    """
    steps, box = _prepared(model, x, epsilon)
    return boxes.margins(steps, boxes.propagate(steps, box), y)


def crown_ibp(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, slope: str = "adaptive") -> Tensor:
    """Margins by one backward pass between bounds from boxes, or those of `ibp` where they are better; differentiable.

    Arguments and errors as `ibp`; ``slope`` as `lines.around`. Source: Zhang et al. 2020, arXiv 1906.06316.
    """
    steps, box = _prepared(model, x, epsilon)
    found = boxes.propagate(steps, box)
    return torch.maximum(boxes.margins(steps, found, y), linear_bounds.margins(steps, found, y, slope=slope))


@torch.no_grad()
def crown(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, slope: str = "adaptive") -> Tensor:
    """Margins by one backward pass between bounds that come from backward passes, or the boxes' where they are better.

    It certifies networks that were not trained for certificates. Arguments and errors as `ibp`. Source: Zhang et al.
    2018, arXiv 1811.00866.
    """
    steps, box = _prepared(model, x, epsilon)
    found = linear_bounds.tightened(steps, box, slope=slope)
    return torch.maximum(boxes.margins(steps, found, y), linear_bounds.margins(steps, found, y, slope=slope))


def symbolic(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float) -> Tensor:
    """`crown` with parallel lines: symbolic intervals, as MixTrain uses them (Wang et al. 2018, arXiv 1811.02625)."""
    return crown(model, x, y, epsilon=epsilon, slope="same")


def certified(model: nn.Module, x: Tensor, margins: Tensor) -> Tensor:
    """Whether each image is certified (B,), bool: its least margin exceeds what float32 may have rounded away."""
    return margins.amin(1) > slack(model, x)


@torch.no_grad()
def slack(model: nn.Module, x: Tensor) -> Tensor:
    """What a margin of each image (B,) must exceed: `SLACK` times its largest logit, or 1."""
    with runtime.evaluating(model):
        return SLACK * model(x).abs().amax(1).clamp(min=1)


def check_classes(steps: list[Step]) -> None:
    """Raise unless there are logits of at least two classes."""
    if len(steps[-1].shape) != 1 or steps[-1].shape[0] < 2:
        shape = ", ".join(map(str, steps[-1].shape))
        raise ValueError(f"expected logits of at least 2 classes, got {shape}: one class has no margin")


def _prepared(model: nn.Module, x: Tensor, epsilon: float) -> tuple[list[Step], Box]:
    box = boxes.of_images(x, epsilon)
    steps = programs.program(model, tuple(x.shape[1:]))
    check_classes(steps)
    return steps, box
