"""Weights and biases of single layers on their grids."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib.quantization import FLOAT, INT, POT, calibration, fake_quantize, layer_formats, post_training
from rqlib.quantization.requantize import unit


def layer(kind=nn.Conv2d):
    torch.manual_seed(0)
    made = kind(4, 6, 3) if kind is not nn.Linear else nn.Linear(4, 6)
    made.weight.data *= torch.arange(1.0, 7).view(-1, *[1] * (made.weight.dim() - 1))
    return made


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Linear])
@pytest.mark.parametrize("granularity", layer_formats.GRANULARITIES)
def test_the_largest_weight_is_the_largest_level(kind, granularity):
    made = layer(kind)
    before = made.weight.detach().clone()
    layer_formats.quantize_weight(made, FLOAT(6, 2), granularity, "minmax")
    scale = fake_quantize.quantizer(made).scale
    levels = (made.weight.detach() / scale).flatten(1)
    assert_close(FLOAT(6, 2).round(levels), levels)
    largest = levels.abs().amax(1)
    assert_close(largest.max(), torch.tensor(FLOAT(6, 2).max))
    assert (largest > 0.999 * FLOAT(6, 2).max).all() == (granularity == "channel")
    error = (made.weight - before).abs().flatten(1)
    assert (error.amax(1) <= scale.flatten() * FLOAT(6, 2).levels.diff().max() / 2 * 1.001).all()


def test_channels_have_less_error_than_the_tensor_and_mse_less_than_minmax():
    def error(granularity, ranges):
        made = layer()
        before = made.weight.detach().clone()
        layer_formats.quantize_weight(made, INT(3), granularity, ranges)
        return (made.weight - before).square().sum().item()

    assert error("channel", "mse") < error("channel", "minmax") < error("tensor", "minmax")
    assert error("tensor", "percentile") == error("tensor", "minmax")


@pytest.mark.parametrize("granularity", layer_formats.GRANULARITIES)
@pytest.mark.parametrize(
    ("format", "bias"), [(INT(8), INT(32)), (POT(4), POT(8)), (POT(8), POT(8)), (FLOAT(8, 4), FLOAT(16, 7))], ids=str
)
def test_biases_lie_on_grids_in_units_of_the_sum(format, bias, granularity):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)).eval()
    pictures = torch.rand(4, 3, 8, 8)
    calibrated = calibration.calibrate(network, pictures)
    quantized = post_training.apply(calibrated, format, granularity=granularity, bias="seed")
    for name, source in (("0", "input_1"), ("4", "_1")):
        made, point = quantized.get_submodule(name), quantized.quantizers.get_submodule(source)
        weight, quantizer = (fake_quantize.quantizer(made, name) for name in ("weight", "bias"))
        assert quantizer.format == bias
        assert point.format == (format.unsigned if name == "4" else point.format)
        step = weight.scale.flatten().double() * unit(format) * point.scale.double() * unit(point.format)
        units = made.bias.detach().double() / step
        expected = units.round() if bias == INT(32) else bias.round(units)
        assert_close(units, expected, rtol=1e-5, atol=1e-5)
        original = network.get_submodule(name).bias
        tolerance = {"INT": step.max().item(), "POT": 0.34 * original.abs().max().item(), "FLOAT": 0.002}[format.kind]
        assert_close(made.bias, original, rtol=0, atol=tolerance)


@pytest.mark.parametrize("format", [INT(8), INT(16)], ids=lambda format: format.name)
@pytest.mark.parametrize("granularity", layer_formats.GRANULARITIES)
def test_biases_that_their_unit_cannot_hold_get_one_of_their_own(format, granularity):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    network[0].weight.data[:4] = 0  # filters that were pruned; their biases stay
    network[0].weight.data *= 1e-6 if granularity == "tensor" else 1
    network[0].bias.data.uniform_(0.5, 1.5)
    calibrated = calibration.calibrate(network, torch.rand(4, 3, 8, 8))
    with pytest.warns(UserWarning, match=r"\d+ biases are larger than their format holds .* of their own: 0 \([48]\)"):
        quantized = post_training.apply(calibrated, format, granularity=granularity, bias="seed")
    assert_close(quantized.get_submodule("0").bias, network[0].bias, rtol=0.01, atol=0)
    quantized = post_training.apply(calibrated, POT(4), granularity=granularity, bias="seed")  # POT_8 holds every bias
    assert_close(quantized.get_submodule("0").bias, network[0].bias, rtol=0.34, atol=0)
