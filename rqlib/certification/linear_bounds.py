"""Linear bounds (CROWN): a margin is bounded by a linear function of the image, found by one backward pass.

Going back from the margins, every step that is not linear is replaced by two lines between which its values lie. Those
of a ReLU depend on bounds [l, u] of its input: from boxes (CROWN-IBP: Zhang et al. 2020, arXiv 1906.06316), or from
backward passes of their own, first layers first (CROWN: Zhang et al. 2018, arXiv 1811.00866), which only units whose
sign is not certain need. With the slope ``same`` both lines are parallel, as in symbolic intervals (Wang et al. 2018,
arXiv 1811.02625).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.certification import boxes, programs
from rqlib.certification.boxes import Box
from rqlib.certification.programs import Step

SLOPES = ("adaptive", "same")
TIE = 1e-6
"""A slope that is below 1/2 by less counts as above it, so that rounding does not choose between the lines."""

ROWS = 2**24
"""So many coefficients are held at a time by `tightened`, in float32 64 MiB."""


def margins(steps: list[Step], found: list[Box], y: Tensor, *, slope: str = "adaptive") -> Tensor:
    """Lower bounds (B, K) of the margins ``z_y - z_j`` by one backward pass; infinite at j = y. Differentiable.

    Args:
        found: the box of every step, from `boxes.propagate` (CROWN-IBP) or `tightened` (CROWN).
        slope: of the lower line of an uncertain ReLU, with u / (u - l) that of the upper one: ``adaptive`` 1 if that is
            above 1/2, else 0; ``same`` the same.

    Raises:
        ValueError: unknown slope; a step that has no linear bounds.
    """
    count = found[-1].low.shape[1]
    identity = torch.eye(count).to(found[-1].low)
    rows = (identity[y][:, None] - identity).flatten(0, 1)  # row (b, j) is e_y - e_j
    owners = torch.arange(len(y), device=y.device).repeat_interleave(count)
    lower = _lower(steps, found, len(steps) - 1, rows, owners, slope).view(len(y), count)
    return lower.scatter(1, y[:, None], torch.inf)


@torch.no_grad()
def tightened(steps: list[Step], box: Box, *, slope: str = "adaptive") -> list[Box]:
    """The boxes of `boxes.propagate`, where the input of every ReLU, clip, rounding and max-pool is bounded by CROWN.

    Only values that are uncertain by their boxes get rows of their own: two backward passes each, many at a time. The
    input of the first of these steps is an affine map of the image, whose box is exact already.
    """
    found = boxes.propagate(steps, box)
    curves = [number for number, step in enumerate(steps) if step.kind in programs.CURVES]
    wanted = dict.fromkeys(steps[number].sources[0] for number in curves if steps[number].sources[0] not in curves)
    for number in list(wanted)[1:]:
        found[number] = _tighter(steps, found, number, slope)
        found = boxes.refined(steps, found, number)
    return found


def _tighter(steps: list[Step], found: list[Box], number: int, slope: str) -> Box:
    """The box of one step by backward passes of its uncertain values."""
    low, high = (end.flatten(1).clone() for end in found[number])
    uncertain = ((low < 0) & (high > 0)) if _only_relus(steps, number) else (low < high)
    owners, units = uncertain.nonzero(as_tuple=True)
    widest = max(math.prod(step.shape) for step in steps[: number + 1])
    size = max(1, ROWS // widest // 2)
    for some, which in zip(owners.split(size), units.split(size), strict=True):
        rows = F.one_hot(which, low.shape[1]).to(low).view(-1, *steps[number].shape)
        both = _lower(steps, found, number, torch.cat([rows, -rows]), torch.cat([some, some]), slope)
        lower, upper = both[: len(some)], -both[len(some) :]
        low[some, which] = torch.maximum(low[some, which], lower)
        high[some, which] = torch.minimum(high[some, which], upper)
    shape = found[number].low.shape
    return Box(low.view(shape), torch.maximum(high, low).view(shape))


def _only_relus(steps: list[Step], number: int) -> bool:
    """Whether the only curves that read a step are ReLUs, for which a value of certain sign needs no closer bounds."""
    readers = [step.kind for step in steps if number in step.sources]
    return all(kind == programs.RELU or kind not in programs.CURVES for kind in readers)


def _lower(steps, found: list[Box], target: int, rows: Tensor, owners: Tensor, slope: str) -> Tensor:
    """Lower bounds (R,) of the products of rows (R, ...) with the result of a step, each for the image that owns it."""
    if slope not in SLOPES:
        raise ValueError(f"expected slope {' | '.join(SLOPES)}, got {slope!r}")
    coefficients: dict[int, Tensor] = {target: rows}
    bias = rows.new_zeros(len(rows))
    for number in range(target, 0, -1):
        if number not in coefficients:
            continue
        step, a = steps[number], coefficients.pop(number)
        if step.kind == programs.ADD:
            parts = [a] * len(step.sources)
        elif step.kind in (programs.LAYER, programs.LINEAR):
            parts, constant = _back_through_affine(step, steps, a)
            bias = bias + constant
        else:
            part, constant = _back_through_curve(step, found[step.sources[0]], a, owners, slope)
            parts, bias = [part], bias + constant
        for source, part in zip(step.sources, parts, strict=True):
            coefficients[source] = coefficients[source] + part if source in coefficients else part
    low, high = found[0]
    center, radius = (high + low) / 2, (high - low) / 2
    a = coefficients[0].flatten(1)
    return bias + (a * center.flatten(1)[owners]).sum(1) - (a.abs() * radius.flatten(1)[owners]).sum(1)


def _back_through_affine(step: Step, steps: list[Step], a) -> tuple[list, Tensor | float]:
    """Coefficients of what an affine step reads, and what its constant part adds."""
    layer, shapes = step.module, [steps[source].shape for source in step.sources]
    if step.kind == programs.LAYER and isinstance(layer, nn.Linear):
        constant = 0.0 if layer.bias is None else (a * layer.bias).flatten(1).sum(1)
        return [a @ layer.weight], constant
    if step.kind == programs.LAYER and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        constant = 0.0 if layer.bias is None else (a.flatten(2).sum(2) * layer.bias).sum(1)
        transpose = {3: nn.grad.conv1d_input, 4: nn.grad.conv2d_input, 5: nn.grad.conv3d_input}[layer.weight.dim()]
        size = (len(a), *shapes[0])
        return [transpose(size, layer.weight, a, layer.stride, layer.padding, layer.dilation, layer.groups)], constant
    zeros = [a.new_zeros(len(a), *shape) for shape in shapes]
    value, pull = torch.func.vjp(step.apply, *zeros)
    return list(pull(a)), (a * value).flatten(1).sum(1)


def _back_through_curve(step: Step, box: Box, a: Tensor, owners: Tensor, slope: str) -> tuple[Tensor, Tensor]:
    """Coefficients of what a ReLU, clip, rounding or max-pool reads, and what the lines' constants add."""
    if step.kind == programs.MAX:
        return _back_through_max(step, box, a, owners)
    if step.kind not in programs.CURVES:
        raise ValueError(f"no linear bounds are known for {step.name}; boxes (ibp) are, and randomized smoothing")
    positive, negative = a.clamp(min=0), a.clamp(max=0)
    lower, upper = _lines(step, box, slope)  # (slope, constant) each
    moved = positive * lower[0][owners] + negative * upper[0][owners]
    constant = positive * lower[1][owners] + negative * upper[1][owners]
    return moved, constant.flatten(1).sum(1)


def _lines(step: Step, box: Box, slope: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(slope, constant) of the line below and of the line above a curve on [l, u]."""
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


def _clip_lines(box: Box, first: float, last: float, slope: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
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


def _relu_lines(box: Box, slope: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
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
    return binade * 2.0**-format.mantissa_bits * scale / 2


def _back_through_max(step: Step, box: Box, a: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """The line below is the input of the largest lower bound; above is the same if it is the largest for certain."""
    pool = step.module
    options = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    largest_low, index = F.max_pool2d(box.low, *options, return_indices=True)
    largest_high = F.max_pool2d(box.high, *options)
    rivals = _windows(box.high, pool, largest_low.shape[2:]) > largest_low.unsqueeze(2)
    certain = rivals.sum(2) <= 1  # at most the winner itself can exceed its lower bound
    through = a.clamp(min=0) + a.clamp(max=0) * certain[owners]
    constant = (a.clamp(max=0) * torch.where(certain, 0.0, largest_high)[owners]).flatten(1).sum(1)
    moved = a.new_zeros(len(a), *box.low.shape[1:]).flatten(2)
    moved = moved.scatter_add(2, index[owners].flatten(2), through.flatten(2))
    return moved.view(len(a), *box.low.shape[1:]), constant


def _windows(x: Tensor, pool: nn.MaxPool2d, outputs: tuple[int, int]) -> Tensor:
    """The values in every window of a max-pool, (B, C, values per window, H', W'); -inf outside the image."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (
        value if isinstance(value, tuple) else (value, value)
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    rows, columns = (
        (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(outputs, (sh, sw), (dh, dw), (kh, kw), strict=True)
    )
    below, right = max(rows - ph - x.shape[2], 0), max(columns - pw - x.shape[3], 0)
    padded = F.pad(x, (pw, right, ph, below), value=-torch.inf)[:, :, :rows, :columns]
    parts = [
        padded[:, :, i * dh : i * dh + (outputs[0] - 1) * sh + 1 : sh, j * dw : j * dw + (outputs[1] - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return torch.stack(parts, 2)
