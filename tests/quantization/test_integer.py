"""The integer forward against the fake-quantized one, at every quantized point of every family of networks."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from rqlib import quantization
from rqlib.core import derived, layers, runtime
from rqlib.quantization import FLOAT, INT, POT, calibration, int8, integer, post_training, requantize
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
    ours, logits = signals(integer.lower(network, batch_size=8), x)
    theirs, expected = signals(in_float64(network), x)
    assert ours.keys() == theirs.keys()
    for name in ours:
        point, level = network.get_submodule(name), {}
        for which, values in (("ours", ours), ("theirs", theirs)):
            level[which], off = quantized_networks.levels_of(point.format, point.scale, values[name])
            assert off.max() < 1e-4 * point.format.max, "every value lies on a level"
        cancelled = (ours[name] - theirs[name]).abs() < 1e-12 * theirs[name].abs().max()  # POT_8 tells 0 from 1e-19
        assert (((level["ours"] - level["theirs"]).abs() <= 1) | cancelled).all()
    return logits, expected


@pytest.mark.filterwarnings("ignore:BatchNorm stays as it is. it has no convolution")  # WRN norms before it convolves
@pytest.mark.parametrize("format", [INT(8), FLOAT(8, 4)], ids=lambda format: format.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_fake_quantization_at_every_point(name, format):
    model = quantized_networks.network(name, NETWORKS[name])
    pictures = quantized_networks.images(4)
    logits, expected = logits_that_agree(quantization.ptq(model, format, pictures), pictures)
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["MobileNetV2", "Inception_BN"])
def test_zero_points_agree_with_fake_quantization(name):
    pictures = quantized_networks.images(4)
    network = quantization.ptq(quantized_networks.network(name), INT(8), pictures, nonnegative="zero_point")
    assert any(point.format.zero_point for point in network.quantizers.children())
    logits, expected = logits_that_agree(network, pictures)
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
@pytest.mark.parametrize("nonnegative", ["unsigned", "zero_point"])
@pytest.mark.parametrize("name", ["MobileNetV2", "Inception_BN", "toy"])
def test_8_bit_instructions_give_the_codes_of_float32(name, format, nonnegative):
    model = Residual().eval() if name == "toy" else quantized_networks.network(name)
    pictures = quantized_networks.images(4, size=32)
    network = quantization.ptq(model, format, pictures, nonnegative=nonnegative)
    lowered = {kind: integer.lower(network, arithmetic=kind, batch_size=8) for kind in ("int8", "float32")}
    assert any(isinstance(module, int8.Conv2d) for module in lowered["int8"].modules())
    ours, theirs = (signals(lowered[arithmetic], pictures.float() / 255)[0] for arithmetic in ("int8", "float32"))
    assert all(torch.equal(ours[point], theirs[point]) for point in theirs)


def test_mixed_formats_and_float_layers():
    chosen = {"stem": INT(8), "body": FLOAT(5, 2), "linear": POT(5)}
    logits_that_agree(quantization.ptq(Residual().eval(), chosen, PICTURES, activations=INT(6)), PICTURES)


@pytest.mark.filterwarnings("ignore:.* biases are larger than their format holds")
@pytest.mark.parametrize("nonnegative", ["unsigned", "zero_point", "signed"])
def test_best_arithmetic(nonnegative):
    calibrated = calibration.calibrate(Residual().eval(), PICTURES)

    def best(format, device):
        network = post_training.apply(calibrated, format, nonnegative=nonnegative, bias="seed")
        return integer.best_arithmetic(network, torch.device(device))

    assert best(FLOAT(8, 4), "cuda") == "tf32"
    assert best(INT(11), "cuda") == "tf32"
    assert best(INT(12), "cuda") == ("tf32" if nonnegative == "signed" else "float32")  # UINT_12 has 12 bits
    assert best(INT(13), "cuda") == "float32"
    assert best(INT(9), "cpu") == "float32"
    narrow = {format.name for format in quantization.GRID if best(format, "cpu") == "int8"}
    expected = {f"INT_{bits}" for bits in range(2, 9)} | {f"FLOAT_{bits}_E1" for bits in range(3, 9)}
    expected |= {"POT_2", "POT_3", "FLOAT_4_E2", "FLOAT_5_E2", "FLOAT_6_E2", "FLOAT_7_E2"}
    expected |= {"POT_4"} if nonnegative == "signed" else set()  # UPOT_4 reaches from 2^-6 to 2^8
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


def test_without_8_bit_instructions_float32_is_the_best(monkeypatch):
    monkeypatch.setattr(int8, "available", lambda: False)
    network = quantization.ptq(Residual().eval(), INT(8), PICTURES)
    assert integer.best_arithmetic(network, torch.device("cpu")) == "float32"


class AfterActivation(nn.Module):
    """BatchNorm after an activation: with factors of both signs and 0, twice in a row, on a sum, and on a row."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)
        self.norms, self.linear = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(4)), nn.Linear(6, 5)
        self.last, self.activation = nn.BatchNorm1d(5), activation
        for norm in (*self.norms, self.last):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
        self.norms[0].weight.data[1] = 0

    def forward(self, x):
        x = self.norms[1](self.activation(self.norms[0](self.activation(self.first(x)))))
        x = self.norms[3](self.activation(self.second(self.norms[2](x + 1 - x.mean((2, 3), keepdim=True)))) + x)
        return self.last(self.activation(self.linear(x.mean((2, 3)))))


@pytest.mark.filterwarnings("ignore:BatchNorm stays as it is. it has no convolution")
@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 1), nn.SiLU()], ids=repr)
def test_a_batchnorm_after_an_activation_changes_only_factors_and_limits(activation, arithmetic):
    model = AfterActivation(activation).eval()
    for granularity in ("tensor", "channel"):
        network = quantization.ptq(model, INT(8), PICTURES, granularity=granularity)
        lowered = integer.lower(network, arithmetic=arithmetic)
        names = [name for name, _ in lowered.named_modules()]
        assert ("norms.0" in names) == isinstance(activation, nn.SiLU)
        assert "first" in {name.removeprefix("quantizers.") for name, _ in lowered.named_modules()}
        logits_that_agree(network, PICTURES)


def corrupted(lowering, name):
    """A lowering that computes one signal wrongly."""

    def lower(self, node, *arguments):
        signal = original(self, node, *arguments)
        if str(node.target) == name:
            part = self.parts[name]
            wrong = copy.deepcopy(part)
            wrong.forward = lambda x, part=part: part(x) + 2 * (torch.arange(x.numel()).view(x.shape) == 7)
            self.parts[name] = wrong
        return signal

    original = lowering
    return lower


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
def test_an_integer_form_that_computes_something_else_is_refused(monkeypatch, arithmetic):
    network = quantization.ptq(Residual().eval(), INT(8), PICTURES)
    integer.lower(network, arithmetic=arithmetic)
    wrong = corrupted(integer._Lowering._requantize, "quantizers.depthwise")
    with monkeypatch.context() as patched:
        patched.setattr(integer._Lowering, "_requantize", wrong)
        words = rf"integer form \({arithmetic}\) .* first at signal depthwise: 1 of \d+ values are off by up to 2 steps"
        with pytest.raises(derived.NotEqual, match=words):
            integer.lower(network, arithmetic=arithmetic)


def test_an_integer_form_that_depends_on_the_batch_is_refused(monkeypatch):
    network = quantization.ptq(Residual().eval(), INT(8), PICTURES)
    write = requantize.Requantize.forward
    monkeypatch.setattr(requantize.Requantize, "forward", lambda self, x: write(self, x) + 3.0 * (len(x) > 50))
    with pytest.raises(
        derived.NotEqual, match="first at signal .* by up to 3 steps of U?INT_8 in a batch of 100 images"
    ):
        integer.lower(network)
    integer.lower(network, batch_size=40)


def test_an_integer_form_that_is_not_a_number_in_a_large_batch_is_refused(monkeypatch):
    network = quantization.ptq(Residual().eval(), INT(8), PICTURES)
    write = requantize.Requantize.forward
    broken = {True: torch.nan, False: 0.0}
    monkeypatch.setattr(requantize.Requantize, "forward", lambda self, x: write(self, x) + broken[len(x) > 50])
    with pytest.raises(derived.NotEqual, match="off by up to nan steps of U?INT_8 in a batch of 100 images"):
        integer.lower(network)


class Rows(nn.Module):
    """Signals with axes of one element, and linear layers whose outputs lie along the last of three or four axes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.many, self.tall = nn.Conv2d(3, 1, 3), nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, (4, 1))
        self.across, self.back, self.tokens = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(4, 3)
        self.norm, self.point, self.last = nn.BatchNorm1d(6), nn.Conv2d(6, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.tall(self.many(self.one(x).relu()).relu())
        x = x + self.back(self.across(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)
        x = self.norm(self.tokens(x.flatten(2)).relu())
        return self.last(self.point(x.mean(2)[:, :, None, None]).relu().flatten(1))


@functools.cache
def rows_in_codes(arithmetic):
    """The integer form of `Rows`, and the signals of twelve images, each computed alone."""
    lowered = integer.lower(quantization.ptq(Rows().eval(), INT(8), PICTURES), arithmetic=arithmetic, batch_size=8)
    x = quantized_networks.images(12, size=8).to(torch.float64 if arithmetic == "float64" else torch.float32) / 255
    alone = [signals(lowered, x[index : index + 1]) for index in range(12)]
    each = {name: torch.cat([seen[name] for seen, _ in alone]) for name in alone[0][0]}
    return lowered, x, each


@pytest.mark.filterwarnings("ignore:BatchNorm stays as it is. it has no convolution")
@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    images=st.lists(st.integers(0, 11), min_size=1, max_size=40),
    block=st.sampled_from([1, 50, 1000, 2**17]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_codes_do_not_depend_on_the_batch_or_its_memory(arithmetic, images, block, layout):
    with runtime.using("cpu", "float32"), pytest.MonkeyPatch.context() as patched:
        lowered, x, each = rows_in_codes(arithmetic)
        patched.setattr(requantize, "BLOCK", block)
        found, _ = signals(lowered, x[images].contiguous(memory_format=layout))
    assert found.keys() == each.keys()
    assert all(torch.equal(found[name], each[name][images]) for name in found)
