"""The integer forward against the fake-quantized one, at every quantized point of every family of networks."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib import quantization
from rqlib.core import layers
from rqlib.quantization import FLOAT, INT, POT, int8, integer
from tests import quantized_networks

NETWORKS = {
    "AlexNet": 0.125,
    "AlexNet_BN": 0.125,
    "VGG_16": 0.0625,
    "VGG_19": 0.0625,
    "Inception_BN": 0.125,
    "MobileNetV2": 0.125,
    "ResNet_18": 0.125,
    "ResNet_50": 0.0625,
    "ResNet_152": 0.0625,
    "WRN_16_8": 0.1,
    "torchvision:resnet18": 1.0,
    "torchvision:mobilenet_v3_small": 1.0,
}
PICTURES = quantized_networks.images(8, size=8)


def signals(network, x):
    """Value of every quantized signal; codes are turned into values."""
    seen = {}

    def note(name, inputs, signal):
        point = network.get_submodule(name)
        seen[name] = signal.double() * getattr(point, "value_of_code", 1.0)

    names = [f"quantizers.{name}" for name, _ in network.quantizers.named_children()]
    with torch.no_grad(), layers.watching(network, names, note):
        logits = network(x)
    return seen, logits


def in_float64(network):
    """The fake-quantized network in float64; its stored weights are put on the grid first: none is near a tie."""
    network = copy.deepcopy(network)
    for _, layer in layers.weighted_layers(network):
        for name in getattr(layer, "parametrizations", {}):
            layer.parametrizations[name].original.data = getattr(layer, name).detach().clone()
    return network.double()


def logits_that_agree(network, pictures):
    """The logits of the integer form in float64 and of the network, which differ by at most one level at any point."""
    x = pictures.double() / 255
    ours, logits = signals(integer.lower(network), x)
    theirs, expected = signals(in_float64(network), x)
    assert ours.keys() == theirs.keys()
    for name in ours:
        point, level = network.get_submodule(name), {}
        for which, values in (("ours", ours), ("theirs", theirs)):
            level[which], off = quantized_networks.levels_of(point.format, point.scale, values[name])
            assert off.max() < 1e-4 * point.format.max, "every value lies on a level"
        assert (level["ours"] - level["theirs"]).abs().max() <= 1
    return logits, expected


@pytest.mark.filterwarnings("ignore:BatchNorm stays as it is. it has no convolution")  # WRN norms before it convolves
@pytest.mark.parametrize("format", [INT(8), FLOAT(8, 4)], ids=lambda format: format.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_fake_quantization_at_every_point(name, format):
    model = quantized_networks.network(name, NETWORKS[name])
    pictures = quantized_networks.images(4)
    logits, expected = logits_that_agree(quantization.ptq(model, format, pictures), pictures)
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", quantization.GRID, ids=lambda format: format.name)
def test_every_format_agrees(format):
    logits_that_agree(quantization.ptq(Residual().eval(), format, PICTURES, granularity="channel"), PICTURES)


class Residual(nn.Module):
    """Signed and unsigned signals, a sum of both, a concatenation, a layer called twice, a sigmoid, a pool."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.depthwise = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.relu6, self.pool, self.linear = nn.ReLU6(), nn.MaxPool2d(2), nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(self.stem(2 * x - 1)).relu()
        y = x + self.depthwise(self.body(x))
        z = self.relu6(self.body(y)) * torch.sigmoid(y)
        z = torch.cat([self.pool(z), torch.relu(self.pool(y))], 1)
        return self.linear(torch.flatten(z.mean((2, 3)), 1))


class Weighted(nn.Module):
    """Sums of two branches in which the second counts more, less or against."""

    def __init__(self, add):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.add = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), add

    def forward(self, x):
        return self.add(self.one(x), self.other(x)).mean((2, 3))


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y: torch.add(x, y, alpha=3),
        lambda x, y: x.add(y, alpha=-0.5),
        lambda x, y: torch.add(x, alpha=2.0, other=y),
        lambda x, y: x.add_(y),
    ],
    ids=["function", "method", "by name", "in place"],
)
def test_sums_keep_the_weight_of_their_second_term(add):
    logits, expected = logits_that_agree(quantization.ptq(Weighted(add), INT(8), PICTURES), PICTURES)
    assert_close(logits, expected, rtol=1e-5, atol=0.02)


def test_weights_are_whole_numbers_and_worth_the_weights():
    network = quantization.ptq(Residual().eval(), INT(4), PICTURES, granularity="channel")
    before = copy.deepcopy(network.state_dict())
    codes, worth = integer.weight_codes(network.stem)
    assert codes.abs().max() == 7
    assert (codes % 1 == 0).all()
    assert_close((codes * worth.view(-1, 1, 1, 1)).float(), network.stem.weight.detach())
    lowered = integer.lower(network)
    assert torch.equal(lowered.stem.weight, codes.double())
    assert lowered.stem.bias is None
    with torch.no_grad():
        sums = layers.outputs(lowered, ["stem", "body", "depthwise", "linear"], PICTURES.double() / 255)
    assert all((total % 1 == 0).all() for total in sums.values())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items()), "it is left alone"
    assert network(PICTURES.float() / 255).requires_grad


@pytest.mark.skipif(not int8.available(), reason="no exact 8-bit convolutions on this machine")
@pytest.mark.parametrize("format", [INT(8), INT(3), POT(4), FLOAT(7, 2)], ids=lambda format: format.name)
@pytest.mark.parametrize("name", ["MobileNetV2", "Inception_BN", "toy"])
def test_8_bit_instructions_give_the_codes_of_float32(name, format):
    model = Residual().eval() if name == "toy" else quantized_networks.network(name)
    pictures = quantized_networks.images(4, size=32)
    network = quantization.ptq(model, format, pictures)
    lowered = {arithmetic: integer.lower(network, arithmetic=arithmetic) for arithmetic in ("int8", "float32")}
    assert any(isinstance(module, int8.Conv2d) for module in lowered["int8"].modules())
    ours, theirs = (signals(lowered[arithmetic], pictures.float() / 255)[0] for arithmetic in ("int8", "float32"))
    assert all(torch.equal(ours[point], theirs[point]) for point in theirs)


def test_mixed_formats_and_float_layers():
    chosen = {"stem": INT(8), "body": FLOAT(5, 2), "linear": POT(5)}
    logits_that_agree(quantization.ptq(Residual().eval(), chosen, PICTURES, activations=INT(6)), PICTURES)


def test_best_arithmetic():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert integer.best_arithmetic(FLOAT(8, 4), gpu) == "tf32"
    assert integer.best_arithmetic(INT(12), gpu) == "tf32"
    assert integer.best_arithmetic(INT(13), gpu) == "float32"
    assert integer.best_arithmetic(INT(9), cpu) == "float32"
    narrow = {format.name for format in quantization.GRID if integer.best_arithmetic(format, cpu) == "int8"}
    expected = {f"INT_{bits}" for bits in range(2, 9)} | {f"FLOAT_{bits}_E1" for bits in range(3, 9)}
    expected |= {"POT_2", "POT_3", "POT_4", "FLOAT_4_E2", "FLOAT_5_E2", "FLOAT_6_E2", "FLOAT_7_E2"}
    assert narrow == (expected if int8.available() else set())


@pytest.mark.parametrize(
    ("activations", "arithmetic", "error", "words"),
    [
        (None, "float64", ValueError, "expected a network of quantization.ptq with quantized activations"),
        (False, "float64", ValueError, "expected a network of quantization.ptq with quantized activations"),
        (True, "int4", ValueError, r"expected arithmetic float64 \| float32 \| int8, got 'int4'"),
        (True, "int8", RuntimeError, "no exact 8-bit convolutions; arithmetic='float32' gives the same codes"),
    ],
)
def test_errors(monkeypatch, activations, arithmetic, error, words):
    monkeypatch.setattr(int8, "available", lambda: False)
    network = Residual().eval()
    if activations is not None:
        network = quantization.ptq(network, INT(8), PICTURES, activations=activations)
    with pytest.raises(error, match=words):
        integer.lower(network, arithmetic=arithmetic)
    assert integer.best_arithmetic(INT(8), torch.device("cpu")) == "float32"
