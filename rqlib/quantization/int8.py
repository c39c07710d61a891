"""Convolutions by the 8-bit integer instructions of a processor (oneDNN). Sums are exact, and faster than float32."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.quantization.formats import Format

LARGEST = 127
LARGEST_UNSIGNED = 255


class Conv2d(nn.Module):
    """A convolution of 8-bit codes: float32 in and out, exact up to the rounding of sums above 2^24.

    The layer has no bias, and its weights are whole numbers from -127 to 127. Codes lie in ``lowest .. lowest + 255``,
    0 among them; the instructions want them unsigned, so they are stored less the lowest one.
    """

    def __init__(self, layer: nn.Conv2d, *, lowest: int):
        super().__init__()
        self.zero_point = -lowest
        self.geometry = list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
        self.register_buffer("ones", torch.ones(layer.out_channels))
        self.register_buffer("zeros", torch.zeros(layer.out_channels, dtype=torch.int32))
        self.packed = torch.ops.onednn.qconv_prepack(
            layer.weight.detach().to(torch.int8), self.ones, 1.0, self.zero_point, *self.geometry, None
        )

    def forward(self, codes: Tensor) -> Tensor:
        stored = (codes + self.zero_point if self.zero_point else codes).to(torch.uint8)
        return torch.ops.onednn.qconv2d_pointwise(
            *(stored, 1.0, self.zero_point, self.packed, self.ones, self.zeros, None, *self.geometry),
            *(1.0, 0, torch.float32, "none", [], ""),
        )


def fits(layer: nn.Module, lowest: float, highest: float) -> bool:
    """Whether `Conv2d` can replace a layer whose input has codes from ``lowest`` to ``highest``."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    weight = layer.weight
    return highest - min(lowest, 0) <= LARGEST_UNSIGNED and bool(
        (weight.abs().amax() <= LARGEST) & (weight == weight.round()).all()
    )


def holds(format: Format) -> bool:
    """Whether every code of a format is one of the 8-bit integers that `Conv2d` takes."""
    return (format.max - format.min) / format.unit <= LARGEST_UNSIGNED


@functools.cache
def available() -> bool:
    """Whether this machine and this build of torch compute 8-bit convolutions exactly, found out by trying.

    Processors without the VNNI instructions clip sums of products to 16 bits; there the answer is False.
    """
    try:
        return all(_is_exact(groups, lowest) for groups in (1, 64) for lowest in (0, -LARGEST))
    except (RuntimeError, AttributeError, TypeError):  # no oneDNN, or its operators take other arguments
        return False


def _is_exact(groups: int, lowest: int) -> bool:
    """Whether sums of the largest possible codes are right, if these are 0 .. 255 or -127 .. 127."""
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False, groups=groups)
    rng = torch.Generator().manual_seed(0)
    layer.weight.data = LARGEST * torch.randint(0, 2, layer.weight.shape, generator=rng).float() * 2 - LARGEST
    codes = torch.randint(-1 if lowest else 0, 2, (2, 64, 8, 8), generator=rng).float()
    codes *= LARGEST if lowest else LARGEST_UNSIGNED
    expected = F.conv2d(codes.double(), layer.weight.double(), padding=1, groups=groups)
    return torch.equal(Conv2d(layer, lowest=lowest)(codes).double(), expected)
