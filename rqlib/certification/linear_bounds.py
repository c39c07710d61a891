"""Linear bounds (CROWN): a margin is bounded by a linear function of the image, found by one backward pass.

Going back from the margins, every step that is not linear is replaced by two lines between which its values lie. Those
of a ReLU depend on bounds [l, u] of its input: from boxes (CROWN-IBP: Zhang et al. 2020, arXiv 1906.06316), or from
backward passes of their own, first layers first (CROWN: Zhang et al. 2018, arXiv 1811.00866), which only units whose
sign is not certain need. With the slope ``same`` both lines are parallel, as in symbolic intervals (Wang et al. 2018,
arXiv 1811.02625).

A linear function has one coefficient for every value of a step: rows (G, R, ...), R rows for each of G owners, which
are numbers of images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.certification import boxes, lines, patches, phases, programs
from rqlib.certification.boxes import Box
from rqlib.certification.programs import Step

COEFFICIENTS = 5 * 2**18
"""So many coefficients of one step are held at a time, in float32 5 MiB, unless gradients need them all."""


def margins(
    steps: list[Step], found: list[Box], y: Tensor, *, slope: str = "adaptive", wanted: Tensor | None = None
) -> Tensor:
    """Lower bounds (B, K) of the margins ``z_y - z_j`` by one backward pass; infinite at j = y. Differentiable.

    Args:
        found: the box of every step, from `boxes.propagate` (CROWN-IBP) or `tightened` (CROWN).
        slope: as `lines.around`.
        wanted: which margins are bounded, bool (B, K); -inf stands for the others. All, if None.

    Raises:
        ValueError: unknown slope; a step that has no linear bounds.
    """
    classes = found[-1].low.shape[1]
    identity = torch.eye(classes).to(found[-1].low)
    if wanted is None:
        others = torch.arange(classes - 1, device=y.device)
        others = others + (others >= y[:, None])  # (B, K - 1): every class but y
        rows = identity[y][:, None] - identity[others]
        lower = _lower(steps, found, len(steps) - 1, rows, None, slope)
        return lower.new_full((len(y), classes), torch.inf).scatter(1, others, lower)
    wanted = wanted.scatter(1, y[:, None], False)
    owners, others = wanted.nonzero(as_tuple=True)
    rows = (identity[y[owners]] - identity[others])[:, None]
    lower = _lower(steps, found, len(steps) - 1, rows, owners, slope).squeeze(1)
    return lower.new_full(wanted.shape, -torch.inf).masked_scatter(wanted, lower).scatter(1, y[:, None], torch.inf)


def tightened(steps: list[Step], box: Box, *, slope: str = "adaptive") -> list[Box]:
    """The boxes of `boxes.propagate`, where the input of every ReLU, clip, rounding and max-pool is bounded by CROWN.

    Only values that are uncertain by their boxes get rows of their own: two backward passes each, many at a time. The
    input of the first of these steps is an affine map of the image, whose box is exact already. Differentiable.
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
    low, high = (end.flatten(1) for end in found[number])
    uncertain = ((low < 0) & (high > 0)) if _only_relus(steps, number) else (low < high)
    owners, units = uncertain.nonzero(as_tuple=True)
    if not len(owners):
        return found[number]
    if patches.fit(steps, number):
        lower, upper = patches.bounds(steps, found, number, owners, units, slope)
    else:
        lower, upper = _of_units(steps, found, number, owners, units, slope)
    at = (owners, units)
    low, high = low.index_put(at, torch.maximum(low[at], lower)), high.index_put(at, torch.minimum(high[at], upper))
    return Box(low.view_as(found[number].low), high.view_as(found[number].high))


def _of_units(steps, found: list[Box], number: int, owners: Tensor, units: Tensor, slope: str):
    """Lower and upper bounds of single values of a step, (U,) each."""
    shape, ends = steps[number].shape, []
    size = max(1, COEFFICIENTS // _widest(steps, number) // 2)
    for some, which in zip(owners.split(size), units.split(size), strict=True):
        row = F.one_hot(which, math.prod(shape)).to(found[number].low).view(-1, 1, *shape)
        ends.append(_lower(steps, found, number, torch.cat([row, -row], 1), some, slope))
    lower, negative = torch.cat(ends).unbind(1)
    return lower, -negative


def _only_relus(steps: list[Step], number: int) -> bool:
    """Whether a step is read by ReLUs alone, for which values of certain sign need no closer bounds."""
    return all(step.kind == programs.RELU for step in steps if number in step.sources)


def _widest(steps: list[Step], number: int) -> int:
    return max(math.prod(step.shape) for step in steps[: number + 1])


def _lower(steps, found: list[Box], target: int, rows: Tensor, owners: Tensor | None, slope: str) -> Tensor:
    """Lower bounds (G, R) of the products of rows (G, R, ...) with the result of a step, each for its image.

    Without owners there are rows for every image, in the order of the images.
    """
    if slope not in lines.SLOPES:
        raise ValueError(f"expected slope {' | '.join(lines.SLOPES)}, got {slope!r}")
    most = max(1, COEFFICIENTS // _widest(steps, target) // rows.shape[1])
    size, lower = math.ceil(len(rows) / max(1, math.ceil(len(rows) / most))) or 1, []  # parts of equal size
    for number, part in enumerate(rows.split(size)):
        images, places = slice(number * size, number * size + len(part)), slice(None)
        if owners is not None:
            images, places = owners[images].unique_consecutive(return_inverse=True)
        lower.append(_lower_of_some(steps, found, target, part, images, places, slope))
    return torch.cat(lower)


def _lower_of_some(steps, found: list[Box], target: int, rows: Tensor, images, places, slope: str) -> Tensor:
    """As `_lower`, for rows that are worked on together: ``places`` says which of the ``images`` each belongs to."""
    first = programs.start(steps)
    coefficients: dict[int, Tensor] = {target: rows}
    bias = rows.new_zeros(rows.shape[:2])
    for number in range(target, first, -1):
        if number not in coefficients:
            continue
        step, a = steps[number], coefficients.pop(number)
        if not coefficients and step.sources == (first,) and step.kind == programs.LAYER and phases.fit(step.module):
            end = _by_phases(step, a, _some(found[number], images), _some(found[first], images), places)
            return bias + end
        if step.kind == programs.ADD:
            parts = [a] * len(step.sources)
        elif step.kind in (programs.LAYER, programs.SCALE, programs.LINEAR, programs.RESHAPE):
            parts, constant = _back_through_affine(step, steps, a)
            bias = bias + constant
        else:
            box = _some(found[step.sources[0]], images)
            part, constant = _back_through_curve(step, box, a, places, slope)
            parts, bias = [part], bias + constant
        for source, part in zip(step.sources, parts, strict=True):
            coefficients[source] = coefficients[source] + part if source in coefficients else part
    return bias + _least(coefficients[first], *_middle(_some(found[first], images)), places)


def _by_phases(step: Step, a: Tensor, box: Box, image: Box, places) -> Tensor:
    """The smallest values (G, R) of rows of a convolution's result, with its box, if it reads the images' box."""
    moved = phases.transposed(step.module, a.flatten(0, 1)).unflatten(0, a.shape[:2])
    radius = phases.of(step.module, _middle(image)[1], step.shape[1:])
    # What the center of the images becomes is the center of the box, because the convolution is all there is between.
    return _dot(a, _middle(box)[0][places]) - _dot(moved.abs_(), radius[places])


def _middle(box: Box) -> tuple[Tensor, Tensor]:
    """Center and radius of a box."""
    center = torch.lerp(*box, 0.5)
    return center, box.high - center


def _some(box: Box, images: Tensor) -> Box:
    """The box of some images, as the coefficients lie in memory."""
    return Box(*(_channels_last(end[images]) for end in box))


def _least(a: Tensor, center: Tensor, radius: Tensor, places) -> Tensor:
    """The smallest values (G, R) of rows in boxes, of which ``places`` says which is whose."""
    return _dot(a, center[places]) - _dot(a.abs(), radius[places])


def _dot(a: Tensor, values: Tensor) -> Tensor:
    """Products (G, R) of rows (G, R, ...) with the values (G, ...) of their owners."""
    if a.dim() == 5:  # as channels_last lies in memory
        a, values = a.movedim(2, -1), values.movedim(1, -1)
    # The transposed product, (values)(a)' instead of a values, is ten times faster on a CPU.
    return torch.bmm(values.to(a).flatten(1).unsqueeze(1), a.flatten(2).mT).squeeze(1)


def _channels_last(x: Tensor) -> Tensor:
    """Images in the memory format in which convolutions are fastest; others as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def _back_through_affine(step: Step, steps: list[Step], a: Tensor) -> tuple[list[Tensor], Tensor | float]:
    """Coefficients of what an affine step reads, and what its constant part adds."""
    layer, shapes = step.module, [steps[source].shape for source in step.sources]
    if step.kind == programs.RESHAPE:
        return [_channels_last(a.reshape(-1, *shapes[0])).unflatten(0, a.shape[:2])], 0.0
    if step.kind == programs.LAYER and isinstance(layer, nn.Linear):
        return [a @ layer.weight], 0.0 if layer.bias is None else (a * layer.bias).flatten(2).sum(2)
    if step.kind == programs.LAYER and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        constant = 0.0
        if layer.bias is not None:
            bias = layer.bias.view(-1, *[1] * (a.dim() - 3))
            constant = _dot(a, bias.expand(len(a), *a.shape[2:]))
        return [_transposed(layer, a.flatten(0, 1), shapes[0]).unflatten(0, a.shape[:2])], constant
    value, pull = torch.func.vjp(step.apply, *(a.new_zeros(1, *shape) for shape in shapes))
    constant = (a * value[0]).flatten(2).sum(2)
    if step.kind == programs.SCALE and step.shape == shapes[0]:
        return [a * pull(torch.ones_like(value))[0][0]], constant
    zeros = [a.new_zeros(len(a) * a.shape[1], *shape) for shape in shapes]
    _, pull = torch.func.vjp(step.apply, *zeros)
    return [part.unflatten(0, a.shape[:2]) for part in pull(a.flatten(0, 1))], constant


def _transposed(layer: nn.Module, a: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows of what a convolution reads, from rows of its result, both (R, C, ...)."""
    sides = zip(shape[1:], a.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    unread = [n - (m - 1) * s + 2 * p - d * (k - 1) - 1 for n, m, k, s, p, d in sides]  # pixels that no window reaches
    transpose = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}[layer.weight.dim()]
    return transpose(a, layer.weight, None, layer.stride, layer.padding, unread, layer.groups, layer.dilation)


def _back_through_curve(step: Step, box: Box, a: Tensor, places, slope: str) -> tuple[Tensor, Tensor]:
    """Coefficients of what a ReLU, clip, rounding or max-pool reads, and what the lines' constants add."""
    if step.kind == programs.MAX:
        return _back_through_max(step, box, a, places)
    if step.kind not in programs.CURVES:
        raise ValueError(f"no linear bounds are known for {step.name}; boxes (ibp) are, and randomized smoothing")
    lower, upper = lines.around(step, box, slope)
    negative = a.clamp(max=0)
    # The lower line for positive coefficients, the upper one for negative ones.
    moved = (a * lower[0][places].unsqueeze(1)).addcmul_(negative, (upper[0] - lower[0])[places].unsqueeze(1))
    constant = _dot(negative, (upper[1] - lower[1])[places])
    if step.kind != programs.RELU:  # a ReLU's lower line goes through 0
        constant = constant + _dot(a, lower[1][places])
    return moved, constant


def _back_through_max(step: Step, box: Box, a: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The line below is the input of the largest lower bound; above is the same if it is the largest for certain."""
    pool = step.module
    options = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    largest_low, index = F.max_pool2d(box.low, *options, return_indices=True)
    largest_high = F.max_pool2d(box.high, *options)
    rivals = _windows(box.high, pool, largest_low.shape[2:]) > largest_low.unsqueeze(2)
    certain = rivals.sum(2) <= 1  # at most the winner itself can exceed its lower bound
    through = a.clamp(min=0) + a.clamp(max=0) * certain[places].unsqueeze(1)
    constant = _dot(a.clamp(max=0), torch.where(certain, 0.0, largest_high)[places])
    index = index[places].unsqueeze(1).expand_as(a).flatten(3)
    moved = a.new_zeros(*a.shape[:2], *box.low.shape[1:]).flatten(3).scatter_add(3, index, through.flatten(3))
    return moved.view(*a.shape[:2], *box.low.shape[1:]), constant


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
