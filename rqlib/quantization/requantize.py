"""The pointwise steps of the integer form of a network: from sums of codes to codes, and from codes to values."""

import math

import torch
from torch import Tensor, nn

from rqlib.quantization import rounding
from rqlib.quantization.formats import Format

BLOCK = 2**18  # about so many values are requantized at a time on a processor, so that they stay in its cache


def unit(format: Format) -> float:
    """What one code of a format is worth before scaling: its smallest positive value, so that codes are whole numbers.

    With 6 or 7 exponent bits, though, products of whole codes would leave the range of float32. There it is the
    largest power of two of the format, which changes only the exponents of codes.
    """
    return format.unit if format.exponent_bits < 6 else 2.0 ** math.floor(math.log2(format.max))


class Requantize(nn.Module):
    """Turns sums of codes into codes of the output's format: ``round(clip(x multiplier + offset, low, high))``.

    With one multiplier this is computed as ``(x + offset / multiplier) / (1 / multiplier)``, and otherwise as written,
    each operation rounded by itself: the order in which an ONNX file computes it (`quantization.export`).

    Args:
        multiplier: ``s_w s_x / s_o`` of the scales of weight, input and output, float64; one number, or one per channel
            (it broadcasts against x).
        offset: the bias in units of the output's codes; None for 0.
        low, high: the range of the output in codes, numbers or one per channel; a ReLU is ``low=0``.
        value_of_code: what one code of the output is worth, ``s_o unit``.
        overwrite: whether the codes may be written into the memory of x, because nothing else reads x.
        dtype: of x.
    """

    def __init__(
        self,
        format: Format,
        multiplier: Tensor,
        offset: Tensor | None,
        *,
        low: float | Tensor,
        high: float | Tensor,
        value_of_code: float,
        overwrite: bool,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        self.format, self.unit, self.overwrite = format, unit(format), overwrite
        self.value_of_code = value_of_code
        one = multiplier.numel() == 1 and multiplier.item() > 0
        offset = offset / multiplier if one and offset is not None else offset
        self.register_buffer("step", (1 / multiplier).to(dtype) if one else None)
        self.register_buffer("multiplier", None if one else multiplier.to(dtype))
        self.register_buffer("offset", None if offset is None else offset.to(dtype))
        smallest, largest = format.min / self.unit, format.max / self.unit
        per_channel = any(isinstance(bound, Tensor) for bound in (low, high))
        bounds = [torch.as_tensor(bound).to(multiplier.device, dtype).clamp(smallest, largest) for bound in (low, high)]
        self.lowest, self.highest = bounds[0].min().item(), bounds[1].max().item()
        self.register_buffer("low", bounds[0] if per_channel else None)
        self.register_buffer("high", bounds[1] if per_channel else None)

    def forward(self, x: Tensor) -> Tensor:
        codes = x if self.overwrite else torch.empty_like(x)
        if x.numel() <= BLOCK:
            self._write(x, codes)
            return codes
        images = len(x) if x.device.type != "cpu" else max(BLOCK * len(x) // max(x.numel(), 1), 1)
        for source, target in zip(x.split(images), codes.split(images), strict=True):
            self._write(source, target)
        return codes

    def _write(self, x: Tensor, codes: Tensor) -> None:
        """Write the codes of some images."""
        if self.step is None:
            torch.mul(x, self.multiplier, out=codes)
            codes = codes if self.offset is None else codes.add_(self.offset)
        elif self.offset is None:
            torch.div(x, self.step, out=codes)
        else:
            torch.add(x, self.offset, out=codes).div_(self.step)
        if self.low is None:
            codes.clamp_(self.lowest, self.highest)
        else:
            codes.clamp_(self.low, self.high)
        if self.format.legacy:
            codes.copy_(self.format.round(codes * self.unit) / self.unit)
        elif self.format.exponent_bits == 1:  # every whole number is a code
            codes.round_()
        else:
            rounding.snap_(codes, self.format.smallest_normal / self.unit, self.format.mantissa_bits)


class Value(nn.Module):
    """Turns codes, or sums of codes, into the values that they stand for: ``clip(x scale + offset, low, high)``.

    With one scale this is computed as ``(x + offset / scale) scale``, and otherwise as written (see `Requantize`).
    """

    def __init__(
        self,
        scale: Tensor,
        offset: Tensor | None,
        low: float | Tensor,
        high: float | Tensor,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        self.first = scale.numel() == 1 and scale.item() > 0  # whether the offset is added before the product
        offset = offset / scale if self.first and offset is not None else offset
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("offset", None if offset is None else offset.to(dtype))
        self.register_buffer("low", torch.as_tensor(low).to(self.scale))
        self.register_buffer("high", torch.as_tensor(high).to(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.offset is None:
            value = x * self.scale
        else:
            value = (x + self.offset) * self.scale if self.first else x * self.scale + self.offset
        return value.clamp(self.low, self.high)
