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
@pytest.mark.parametrize("nonnegative", [True, False])
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
def test_sums_are_exact(options, nonnegative):
    convolution = layer(**options)
    low, high = (0, 255) if nonnegative else (-127, 127)
    codes = torch.randint(low, high + 1, (2, convolution.in_channels, 9, 9)).float()
    codes = codes.contiguous(memory_format=torch.channels_last)
    expected = convolution.double()(codes.double())
    sums = int8.Conv2d(convolution, nonnegative=nonnegative)(codes)
    assert sums.dtype == torch.float32
    assert torch.equal(sums.double(), expected)


def test_what_fits():
    assert int8.fits(layer(), 127, nonnegative=False)
    assert not int8.fits(layer(), 128, nonnegative=False)
    assert int8.fits(layer(), 255, nonnegative=True)
    for largest in (256, float("inf")):
        assert not int8.fits(layer(), largest, nonnegative=True)
    for other in (layer(padding="same"), layer(padding=1, padding_mode="reflect"), nn.Conv1d(1, 1, 1)):
        assert not int8.fits(other, 1, nonnegative=True)
    for value in (128.0, 0.5):
        convolution = layer()
        convolution.weight.data[0, 0, 0, 0] = value
        assert not int8.fits(convolution, 127, nonnegative=False)
    narrow = [format for format in (INT(8), INT(8).unsigned, INT(9), INT(9).unsigned, POT(5)) if int8.holds(format)]
    assert narrow == [INT(8), INT(8).unsigned]


def test_a_machine_without_the_operators_is_told_from_one_with(monkeypatch):
    def missing(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(int8, "_is_exact", missing)
    assert not int8.available.__wrapped__()
    monkeypatch.setattr(int8, "_is_exact", lambda groups, nonnegative: nonnegative)  # saturates on signed codes
    assert not int8.available.__wrapped__()
