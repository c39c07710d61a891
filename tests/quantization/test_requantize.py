"""Requantization against the formula written out in float64."""

import pytest
import torch
from torch.testing import assert_close

from rqlib.quantization import FLOAT, INT, POT
from rqlib.quantization.requantize import Requantize, unit

FORMATS = [INT(8), INT(16), POT(4), POT(8), FLOAT(8, 4), FLOAT(8, 6), FLOAT(8, 1, legacy=True)]
formats = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)


def requantize(format, multiplier, offset=None, low=-torch.inf, overwrite=False):
    return Requantize(format, multiplier, offset, low=low, high=torch.inf, value_of_code=1.0, overwrite=overwrite)


@formats
def test_codes_are_whole_numbers_or_powers_of_two_apart(format):
    codes = format.levels.double() / unit(format)
    if format.exponent_bits < 6:
        assert (codes % 1 == 0).all()
    else:
        assert codes.abs().max() < 2


@formats
@pytest.mark.parametrize("shape", [(50, 20), (5, 20, 7, 7), (9, 64, 16, 16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_is_the_formula(format, shape, layout):
    x = torch.randn(shape, dtype=torch.float64) * 100
    if x.dim() == 4:
        x = x.contiguous(memory_format=layout)
    trailing = (1,) * (len(shape) - 2)
    spread = 1 if format.exponent_bits < 6 else unit(format) ** -0.5
    multiplier = (torch.rand(shape[1], *trailing, dtype=torch.float64) + 0.5) * spread
    offset = torch.randn(shape[1], *trailing, dtype=torch.float64) * spread
    for low, bias in ((0.0, offset), (-torch.inf, None)):
        value = (x * multiplier + (0 if bias is None else bias)).clamp(min=low)
        expected = format.round(value * unit(format)) / unit(format)
        source = x.clone()
        assert_close(requantize(format, multiplier, bias, low)(source), expected, rtol=0, atol=0)
        assert torch.equal(source, x)
        codes = requantize(format, multiplier, bias, low, overwrite=True)(source)
        assert_close(codes, expected, rtol=0, atol=0)
        assert codes.data_ptr() == source.data_ptr()
