"""From sums of codes to codes, and from codes to values: the pointwise steps of the integer forward."""

import math

import torch
from torch import Tensor, nn

from rqlib.quantization import rounding
from rqlib.quantization.formats import Format

BLOCK = 2**17  # values requantized at a time on a processor: they stay in its cache


def unit(format: Format) -> float:
    """What one code is worth before scaling: the smallest value of the format, so that codes are whole numbers.

    With 6 or 7 exponent bits products of whole codes leave the range of float32; there it is the largest
    power of two of the format, which changes nothing but exponents.
    """
    return format.unit if format.exponent_bits < 6 else 2.0 ** math.floor(math.log2(format.max))


class Requantize(nn.Module):
    """``round(clip(x multiplier + offset, low, high))`` in codes of a format.

    Args:
        multiplier: ``s_w s_x / s_o``; one number, or one a channel (it broadcasts against x).
        offset: the bias in units of the output's codes, None for 0.
        low, high: in codes; a ReLU is ``low=0``.
        value_of_code: what one code is worth, ``s_o unit``.
        overwrite: x is a sum that nobody else reads, and its memory may hold the codes.
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
        if not _has_rows(x):
            return self._codes(x, codes, multiplier, offset)
        channels = x.shape[1]
        size = max(BLOCK // channels, 1)
        flat = (tensor if tensor is None else tensor.flatten() for tensor in (multiplier, offset))
        multiplier, offset = flat
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
        if self.format.exponent_bits == 1:  # codes are the whole numbers
            return codes.round_()
        return rounding.snap_(codes, self.format.smallest_normal / self.unit, self.format.mantissa_bits)

    def extra_repr(self) -> str:
        return f"{self.format.name}, codes {self.low:g} .. {self.high:g} of {self.value_of_code:g}"


class Value(nn.Module):
    """``clip(x scale + offset, low, high)``: what codes, or sums of them, are worth."""

    def __init__(self, scale: Tensor, offset: Tensor | None, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        value = x * self.scale if self.offset is None else torch.addcmul(self.offset, x, self.scale)
        return value.clamp(self.low, self.high) if self.low > -torch.inf or self.high < torch.inf else value


def _has_rows(x: Tensor) -> bool:
    """Whether a batch of maps is held pixel by pixel (channels_last) and is worth cutting into pieces."""
    large = x.dim() == 4 and x.numel() > BLOCK and x.device.type == "cpu"
    return large and x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) in channels_last as (B H W, C), the same memory."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])
