"""The closed form against logarithms and division in float64."""

import pytest
import torch
from torch.testing import assert_close

from rqlib.quantization import parse, rounding


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["INT_4", "UINT_8", "UINT_4_Z5", "POT_4", "FLOAT_6_E3", "FLOAT_6_E3_LEGACY", "INT_24"])
def test_a_scale_changes_nothing_but_the_time_it_takes(name, memory_format):
    format, scale = parse(name), torch.tensor([0.3])
    x = torch.randn(3, 7, 80, 160, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    x[0, 0, 0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])
    for part in (x, x[:, :, :9, :9], x[:1, :1, :9]):  # in blocks; with gaps in memory; of a single block
        rounded = format.round_scaled(part, scale)
        assert_close(rounded, format.round(part / scale) * scale, rtol=0, atol=0, equal_nan=True)
        assert not rounded[rounded == 0].signbit().any()
    assert format.round_scaled(x, scale).stride() == x.stride()
    assert x[0, 0, 0, 0] == torch.inf  # what was rounded is unchanged
