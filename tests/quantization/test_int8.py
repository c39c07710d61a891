"""8-bit convolutions against the same sums in float64."""

import pytest
import torch
from torch import nn

from rqlib.quantization import INT, POT, int8

needs_int8 = pytest.mark.skipif(not int8.available(), reason="no exact 8-bit convolutions on this machine")


def layer(inputs=6, outputs=8, **options):
    torch.manual_seed(0)
    convolution = nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "bias": False, **options})
    convolution.weight.data = torch.randint(-127, 128, convolution.weight.shape).float()
    return convolution


@needs_int8
@pytest.mark.parametrize("lowest", [0, -127, -128, -30, -255])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"stride": 2, "padding": 2, "kernel_size": 5},
        {"groups": 2, "dilation": 2, "padding": 2},
        {"groups": 6, "outputs": 6, "padding": 1},
        {"inputs": 3, "outputs": 64, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2)},
    ],
    ids=str,
)
def test_sums_are_exact(options, lowest):
    convolution = layer(**options)
    codes = torch.randint(lowest, lowest + 256, (2, convolution.in_channels, 9, 9)).float()
    codes = codes.contiguous(memory_format=torch.channels_last)
    expected = convolution.double()(codes.double())
    sums = int8.Conv2d(convolution, lowest=lowest)(codes)
    assert sums.dtype == torch.float32
    assert torch.equal(sums.double(), expected)


def test_what_fits():
    assert int8.fits(layer(), -127, 127)
    assert int8.fits(layer(), -255, 0)
    assert not int8.fits(layer(), -128, 128)
    assert int8.fits(layer(), 0, 255)
    for highest in (256, float("inf")):
        assert not int8.fits(layer(), 0, highest)
    assert not int8.fits(layer(), 10, 256)  # zeros are padded
    for other in (layer(padding="same"), layer(padding=1, padding_mode="reflect"), nn.Conv1d(1, 1, 1)):
        assert not int8.fits(other, 0, 1)
    for value in (128.0, 0.5):
        convolution = layer()
        convolution.weight.data[0, 0, 0, 0] = value
        assert not int8.fits(convolution, -127, 127)
    narrow = [INT(8), INT(8).unsigned, INT(8).with_zero_point(100)]
    wide = [INT(9), INT(9).unsigned, INT(9).with_zero_point(255), POT(5)]
    assert [format for format in narrow + wide if int8.holds(format)] == narrow


def test_a_machine_without_the_operators_is_told_from_one_with(monkeypatch):
    def missing(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(int8, "_is_exact", missing)
    assert not int8.available.__wrapped__()
    monkeypatch.setattr(int8, "_is_exact", lambda groups, lowest: lowest == 0)  # saturates on signed codes
    assert not int8.available.__wrapped__()
