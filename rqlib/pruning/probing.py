"""What one operation does with the elements of its inputs, found by running it on probes, whatever its name is.

Each element of a signal bears a number, that of its channel; `CONSTANT` is the number of elements that never change.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rqlib.core import runtime

Run = Callable[[Sequence[Tensor]], Tensor]
"""An operation: tensors in place of its inputs -> its output. It may change the tensors that it is given."""

CONSTANT = -1
_SCALES = (1.0, 0.03, 30.0)  # of the probes: an operation may ignore what is small, or what is large


def movement(run: Run, inputs: Sequence[Tensor]) -> Tensor | None:
    """For each element of the output, its position among all elements of the inputs; None if not all are only moved."""
    rng, sizes = runtime.rng(0), [tensor.numel() for tensor in inputs]
    device = inputs[0].device

    def filled(values: Tensor) -> list[Tensor]:
        parts = values.to(device).split(sizes)
        return [part.clone().view(tensor.shape) for part, tensor in zip(parts, inputs, strict=True)]

    positions = _tried(run, filled(torch.arange(sum(sizes), dtype=torch.float64)))
    values = torch.randn(sum(sizes), generator=rng, dtype=torch.float64)
    moved = _tried(run, filled(values))
    if positions is None or moved is None or positions.shape != moved.shape or positions.dtype != torch.float64:
        return None
    positions = positions.nan_to_num(-1, -1, -1).long()
    inside = not positions.numel() or (positions.min() >= 0 and positions.max() < sum(sizes))
    return positions if inside and torch.equal(values.to(device)[positions], moved) else None


def dependence(run: Run, inputs: Sequence[Tensor], numbers: Sequence[Tensor]) -> list[Tensor] | None:
    """For each input, the number of the channel on which each element of the output depends, int64 of its shape.

    `CONSTANT` where it depends on nothing of this input. None if an element depends on several channels of one input,
    or if the operation cannot be run on probes. Numbers of an input, of its shape, that are all `CONSTANT` say that
    it is not varied.
    """
    rng, found = runtime.rng(0), [_Halves(part) for part in numbers]
    for scale in _SCALES:
        probes = [_probe(tensor, half, scale, rng) for tensor, half in zip(inputs, found, strict=True)]
        before = _tried(run, [first for first, _ in probes])
        if before is None:
            return None
        for which, half in enumerate(found):
            for bit, side, varied in half.masks():
                mixed = [first for first, _ in probes]
                mixed[which] = torch.where(varied, probes[which][1], mixed[which])
                after = _tried(run, mixed)
                if after is None or after.shape != before.shape:
                    return None
                half.note(bit, side, (after != before) & ~((after != after) & (before != before)))
        if functools.reduce(torch.logical_or, [half.reached() for half in found]).all():
            break
    depends = [half.found() for half in found]
    return None if any(part is None for part in depends) else depends


def ignores(run: Run, inputs: Sequence[Tensor], others: Sequence[int], where: Tensor) -> bool:
    """Whether the output, where asked (bool of its shape), is the same whatever the inputs ``others`` are."""
    rng, outputs = runtime.rng(0), []
    for scale in (1.0, 3.0):
        mixed = list(inputs)
        for which in others:
            mixed[which] = _probe(inputs[which], None, scale, rng)[0]
        outputs.append(_tried(run, mixed))
    one, other = outputs
    return one is not None and other is not None and torch.equal(one[where], other[where])


class _Halves:
    """Which outputs change if a half of an input's channels does; with log2 C pairs of halves any two are told apart.

    Channel i belongs to half 1 of pair b if the bit b of i is set, else to half 0.
    """

    def __init__(self, numbers: Tensor):
        self.numbers = numbers
        self.known = numbers.unique()
        self.known = self.known[self.known != CONSTANT]
        self.bits = max(1, (len(self.known) - 1).bit_length())
        self.changed: dict[tuple[int, int], Tensor] = {}

    def masks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(bit, half, which elements of the input belong to it) for every half that is not empty."""
        if not len(self.known):
            return
        order = torch.searchsorted(self.known, self.numbers.contiguous())
        for bit in range(self.bits):
            for side in (0, 1):
                mask = ((order >> bit & 1) == side) & (self.numbers != CONSTANT)
                if mask.any():
                    yield bit, side, mask

    def note(self, bit: int, side: int, changed: Tensor) -> None:
        self.changed[bit, side] = changed | self.changed.get((bit, side), torch.zeros_like(changed))

    def reached(self) -> Tensor:
        """Which outputs have changed at all."""
        return torch.stack(list(self.changed.values())).any(0) if self.changed else torch.zeros((), dtype=torch.bool)

    def found(self) -> Tensor | None:
        """The number on which each output depends; None if one depends on several."""
        if not self.changed:
            return torch.tensor(CONSTANT)
        never = torch.zeros_like(next(iter(self.changed.values())))
        halves = [[self.changed.get((bit, side), never) for bit in range(self.bits)] for side in (0, 1)]
        zeros, ones = map(torch.stack, halves)
        some = (zeros | ones).any(0)
        if (zeros & ones).any() or (some & ~(zeros | ones).all(0)).any():
            return None
        order = sum(one.long() << bit for bit, one in enumerate(ones))
        return torch.where(some, self.known[order.clamp(max=len(self.known) - 1)], CONSTANT)


def _probe(tensor: Tensor, half: _Halves | None, scale: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two tensors like this one that differ in sign and size everywhere; the tensor itself if it is not varied."""
    if half is not None and not len(half.known):
        return tensor, tensor
    size = torch.rand(2, *tensor.shape, generator=rng).to(tensor.device)
    positive = torch.rand(tensor.shape, generator=rng).to(tensor.device) < 0.5
    if tensor.dtype == torch.bool:
        return positive, ~positive
    if not tensor.is_floating_point():
        return tensor, tensor
    sign = torch.where(positive, scale, -scale)
    return tuple((value * sign).to(tensor.dtype) for value in (0.5 + size[0], -2 - 2 * size[1]))


def _tried(run: Run, inputs: Sequence[Tensor]) -> Tensor | None:
    """The output for copies of these inputs; None if there is none."""
    try:
        output = run([tensor.clone() for tensor in inputs])
    except Exception:  # whatever the operation dislikes: it is not understood
        return None
    return output if isinstance(output, Tensor) else None
