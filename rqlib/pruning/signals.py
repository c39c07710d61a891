"""A tensor in a network whose elements bear the numbers of their channels, and the axis along which these lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rqlib.pruning.pools import STAYS
from rqlib.pruning.probing import CONSTANT


@dataclass(frozen=True)
class Signal:
    """What is known of a tensor in a network.

    Attributes:
        numbers: of the channel of each element, int64 of the tensor's shape; `CONSTANT` for padding and the like.
        rest: the tensor while all channels are removed.
        source: the operation that first made ``rest`` another value than 0; empty if none did.
    """

    numbers: Tensor
    rest: Tensor
    source: str = ""

    @property
    def pooled(self) -> bool:
        """Whether it has channels that may be removed, as far as is known."""
        return bool((self.numbers > STAYS).any())


def staying(value: Tensor) -> Signal:
    """The signal of a tensor whose channels must all stay."""
    return Signal(torch.zeros((), dtype=torch.int64).expand(value.shape), value)


def spread(channels: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """Numbers of this shape that lie along an axis."""
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return channels.view(sizes).expand(shape)


def along(numbers: Tensor, axis: int) -> Tensor | None:
    """The number at each index of an axis; None if one index has several. `CONSTANT` elements fit any."""
    lines = numbers.movedim(axis, 0).reshape(numbers.shape[axis], -1)
    found = lines.amax(1)
    return found if ((lines == found[:, None]) | (lines == CONSTANT)).all() else None


def channel_axis(numbers: Tensor) -> int | None:
    """The axis along which the numbers lie; None if there is none, or if all are the same."""
    if numbers.amin() == numbers.amax():
        return None
    return next((axis for axis in range(numbers.dim()) if along(numbers, axis) is not None), None)


def size(tensor: Tensor, axis_from_end: int) -> int:
    """Size of an axis, which is counted from the end (-1 is the last one); 1 if there are fewer axes."""
    return tensor.shape[axis_from_end] if tensor.dim() >= -axis_from_end else 1
