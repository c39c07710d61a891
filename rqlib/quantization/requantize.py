"""The pointwise steps of the integer form of a network: from sums of codes to codes, and from codes to values."""

import math

import torch
from torch import Tensor, nn

from rqlib.quantization import rounding
from rqlib.quantization.formats import Format

BLOCK = 2**17  # so many values are requantized at a time on a processor, so that they stay in its cache


def unit(format: Format) -> float:
    """What one code of a format is worth before scaling: its smallest positive value, so that codes are whole numbers.

    With 6 or 7 exponent bits, though, products of whole codes would leave the range of float32. There it is the
    largest power of two of the format, which changes only the exponents of codes.
    """
    return format.unit if format.exponent_bits < 6 else 2.0 ** math.floor(math.log2(format.max))


class Requantize(nn.Module):
    """Turns sums of codes into codes of the output's format: ``round(clip(x multiplier + offset, low, high))``.

    Args:
        multiplier: ``s_w s_x / s_o`` of the scales of weight, input and output; one number, or one per channel (it
            broadcasts against x).
        offset: the bias in units of the output's codes; None for 0.
        low, high: the range of the output in codes; a ReLU is ``low=0``.
        value_of_code: what one code of the output is worth, ``s_o unit``.
        overwrite: whether the codes may be written into the memory of x, because nothing else reads x.
    """

    def __init__(
        self,
        format: Format,
        multiplier: Tensor,
        offset: Tensor | None,
        *,
        low: float,
        high: float,
        value_of_code: float,
        overwrite: bool,
    ):
        super().__init__()
        self.format, self.unit, self.overwrite = format, unit(format), overwrite
        largest = format.max / self.unit
        self.low, self.high, self.value_of_code = max(low, -largest), min(high, largest), value_of_code
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        codes = x if self.overwrite else torch.empty_like(x)
        multiplier, offset = self.multiplier, self.offset
        large = x.dim() == 4 and x.numel() > BLOCK and x.device.type == "cpu"
        if not (large and x.is_contiguous(memory_format=torch.channels_last)):
            return self._codes(x, codes, multiplier, offset)
        channels = x.shape[1]
        size = max(BLOCK // channels, 1)
        multiplier = multiplier.flatten()
        offset = None if offset is None else offset.flatten()
        for source, target in zip(_rows(x).split(size), _rows(codes).split(size), strict=True):
            self._codes(source, target, multiplier, offset)
        return codes

    def _codes(self, x: Tensor, codes: Tensor, multiplier: Tensor, offset: Tensor | None) -> Tensor:
        if offset is None:
            torch.mul(x, multiplier, out=codes)
        else:
            torch.addcmul(offset, x, multiplier, out=codes)
        codes.clamp_(self.low, self.high)
        if self.format.legacy:
            return codes.copy_(self.format.round(codes * self.unit) / self.unit)
        if self.format.exponent_bits == 1:  # every whole number is a code
            return codes.round_()
        return rounding.snap_(codes, self.format.smallest_normal / self.unit, self.format.mantissa_bits)


class Value(nn.Module):
    """Turns codes, or sums of codes, into the values that they stand for: ``clip(x scale + offset, low, high)``."""

    def __init__(self, scale: Tensor, offset: Tensor | None, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        value = x * self.scale if self.offset is None else torch.addcmul(self.offset, x, self.scale)
        return value.clamp(self.low, self.high) if self.low > -torch.inf or self.high < torch.inf else value


def _rows(x: Tensor) -> Tensor:
    """A view (B H W, C) of a tensor (B, C, H, W) in channels_last."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])
