"""Quantized copies of networks: their accuracy, their weights and signals, and training on the grid."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from rqlib import measures, training
from rqlib.core import layers
from rqlib.quantization import FLOAT, INT, POT, fake_quantize, integer, post_training
from rqlib.quantization.fake_quantize import Quantized
from rqlib.training.recipes import Recipe
from tests import quantized_networks


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_options_keep_the_accuracy_at_eight_bits(trained, digits, ranges, granularity):
    options = {"ranges": ranges, "granularity": granularity, "bias": "seed"}
    network = post_training.ptq(trained, INT(8), digits.calibration(128), **options)
    assert measures.accuracy(network, *digits.test) > 0.9


def test_training_on_the_grid_wins_accuracy_back(trained, digits):
    network = post_training.ptq(trained, INT(2), digits.calibration(256), activations=INT(8), ranges="minmax")
    before = measures.accuracy(network, *digits.test)
    recipe = Recipe(1, batch_size=50, lr=0.005, nesterov=True, schedule="triangle", augment=False)
    training.fit(network, digits, training.objective("natural"), recipe)
    after = measures.accuracy(network, *digits.test)
    assert after > before + 0.3
    _, layer = next(layers.weighted_layers(network))
    scale = fake_quantize.quantizer(layer).scale
    assert_close(INT(2).round(layer.weight / scale) * scale, layer.weight, rtol=0, atol=0)
    lowered = integer.lower(network, arithmetic="float32")
    assert measures.accuracy(lowered, *digits.test) == pytest.approx(after, abs=0.01)


def test_signals_with_zero_points_are_nearer_to_the_float_network():
    """Behind a SiLU a value is never below -0.28."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 16, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    model, pictures = nn.Sequential(*parts, nn.Linear(256, 5)).eval(), quantized_networks.images(64, size=12)
    errors = {}
    with torch.no_grad():
        for nonnegative in ("unsigned", "zero_point"):
            setting = {"activations": INT(4), "nonnegative": nonnegative}
            network = post_training.ptq(model, INT(8), pictures, **setting)
            errors[nonnegative] = (network(pictures / 255) - model(pictures / 255)).norm()
    assert errors["zero_point"] < 0.9 * errors["unsigned"]


@pytest.mark.parametrize("nonnegative", ["unsigned", "signed"])
def test_every_weight_and_signal_is_on_its_grid_and_gradients_reach_the_image(nonnegative):
    model, pictures, labels = quantized_networks.small()
    before = copy.deepcopy(model.state_dict())
    options = {"granularity": "channel", "nonnegative": nonnegative}
    network = copy.deepcopy(post_training.ptq(model, FLOAT(6, 2), pictures, **options))
    seen = []
    names = [f"quantizers.{name}" for name, _ in network.quantizers.named_children()]
    x = (pictures / 255).requires_grad_()
    with layers.watching(network, names, lambda name, _, signal: seen.append((network.get_submodule(name), signal))):
        F.cross_entropy(network(x), labels).backward()
    assert {point.format.signed for point, _ in seen} == ({True, False} if nonnegative == "unsigned" else {True})
    for point, signal in seen:
        assert point.format == (FLOAT(6, 2) if point.format.signed else FLOAT(6, 2).unsigned)
        assert point.format.signed == (nonnegative == "signed" or bool((signal < 0).any()))
        assert quantized_networks.levels_of(point.format, point.scale, signal.detach())[1].max() < 1e-5
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_alone():
    model, pictures, _ = quantized_networks.small()
    network = post_training.ptq(model, "INT_4", pictures, activations=False)
    assert not any(
        isinstance(module, Quantized) for name, module in network.named_modules() if "parametriz" not in name
    )
    assert all(fake_quantize.quantizer(layer).format == INT(4) for _, layer in layers.weighted_layers(network))
    assert type(network) is type(model)


def test_weights_and_signals_can_have_formats_of_their_own():
    model, pictures, _ = quantized_networks.small()
    first, *_ = (name for name, _ in layers.weighted_layers(model))
    network = post_training.ptq(model, {first: "POT_4"}, pictures, activations="INT_8")
    kinds = {name: fake_quantize.quantizer(layer) for name, layer in layers.weighted_layers(network)}
    assert kinds.pop(first).format == POT(4)
    assert set(kinds.values()) == {None}
    assert {point.format for point in network.quantizers.children()} == {INT(8), INT(8).unsigned}


@pytest.mark.parametrize(
    ("format", "options", "words"),
    [
        ("FLOAT_8_E9", {}, r"FLOAT_8_E9: exponent bits must be 1\.\.7"),
        ("INT_8", {"granularity": "row"}, r"expected granularity tensor \| channel, got 'row'"),
        ("INT_8", {"ranges": "max"}, r"expected ranges minmax \| percentile \| mse, got 'max'"),
        ("INT_8", {"nonnegative": "u"}, r"expected nonnegative unsigned \| zero_point \| signed, got 'u'"),
        ("UINT_8", {}, "expected a format with a sign, got UINT_8: weights are negative, too"),
        ("INT_8", {"activations": "UINT_8"}, "expected a format with a sign, got UINT_8"),
        ("INT_8", {"bias": "int"}, r"expected bias float \| seed, got 'int'"),
        ("INT_8", {"bias": "seed", "activations": False}, "bias='seed' .* needs quantized signals"),
        ({"stem": "INT_8"}, {"activations": False}, r"no .* layer is named \['stem'\]; there are features"),
        ({}, {}, "each layer has its own format; say which one the signals take"),
    ],
)
def test_impossible_requests_are_refused(format, options, words):
    model, pictures, _ = quantized_networks.small()
    with pytest.raises(ValueError, match=words):
        post_training.ptq(model, format, pictures, **options)
