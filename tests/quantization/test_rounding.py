"""The closed form against logarithms and division in float64."""

import pytest
import torch
from torch.testing import assert_close

from rqlib.quantization import rounding


def textbook(x, lowest, largest, smallest, mantissa_bits):
    x = x.double()
    step = torch.exp2(torch.floor(torch.log2(x.abs().clamp(min=smallest)))) * 2.0**-mantissa_bits
    return (torch.round(x / step) * step).clamp(lowest, largest)


def values(dtype):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x * 2.0 ** torch.linspace(-20, 8, 20_000)).to(dtype)


@pytest.mark.parametrize("lowest", [-64.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("smallest", "mantissa_bits"), [(2.0**-6, 3), (0.25, 0), (2.0, 14), (1.0, 21)])
def test_is_the_textbook_formula(dtype, smallest, mantissa_bits, lowest):
    x = values(dtype)
    y = rounding.clipped(x, lowest, 64.0, smallest, mantissa_bits)
    assert y.dtype == dtype
    assert_close(y.double(), textbook(x, lowest, 64.0, smallest, mantissa_bits), rtol=0, atol=0)
