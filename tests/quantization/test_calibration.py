"""Folding, ranges of signals against the signals themselves, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib.core import layers, runtime
from rqlib.quantization import calibration, observers
from tests import quantized_networks


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_the_network_computes_the_same_and_is_a_copy():
    model = quantized_networks.network()
    pictures = quantized_networks.images(8)
    state = copy.deepcopy(model.state_dict())
    model.train()
    calibrated = calibration.calibrate(model, pictures)
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not list(layers.batchnorms(calibrated.network))
    with torch.no_grad():
        assert_close(calibrated.network(pictures / 255), model.eval()(pictures / 255), rtol=1e-3, atol=1e-4)


def test_batchnorm_that_cannot_be_folded_is_named():
    with pytest.warns(
        UserWarning, match=r"BatchNorm stays as it is: it has no convolution .*: .*group1\.1\.activate\.norm"
    ) as warned:
        calibration.calibrate(quantized_networks.network("WRN_16_8", 0.1), quantized_networks.images(2))
    message = str(warned[0].message)
    assert "group1.1.body.activate.norm" not in message
    once, twice = message.split("; one rounding, after it, which was measured to lose less than one on both sides); ")
    assert once.endswith(
        ": group2.0.activate.norm, group3.0.activate.norm, activate.norm "
        "(a factor and a shift per channel when sums are rounded"
    )
    assert twice == (
        "group1.1.activate.norm, group2.1.activate.norm, group3.1.activate.norm "
        "(the signal before it has other readers, so there is a rounding on both sides)"
    )


@pytest.mark.parametrize("batch_size", [3, 8])
def test_ranges_are_those_of_the_signals(batch_size):
    pictures = quantized_networks.images(8)
    calibrated = calibration.calibrate(quantized_networks.network(), pictures, ranges="mse", batch_size=batch_size)
    seen = {}
    names = [f"quantizers.{name}" for name in calibrated.signals]
    with (
        torch.no_grad(),
        layers.watching(calibrated.network, names, lambda name, _, signal: seen.update({name: signal})),
    ):
        calibrated.network(pictures / 255)
    for name, observed in calibrated.signals.items():
        signal = seen[f"quantizers.{name}"]
        assert_close(observed.magnitude, signal.abs().max().view(1), rtol=1e-4, atol=1e-5)
        assert observed.counts.sum() == signal.numel()
        expected = observers.histogram_of(signal.reshape(1, -1), observed.magnitude)
        assert (observed.counts - expected).abs().sum() <= 1e-3 * signal.numel() + 4


def test_ranges_depend_neither_on_the_policy_nor_on_the_type_of_the_images():
    model, pictures = quantized_networks.network(), quantized_networks.images(4)
    expected = calibration.calibrate(model, pictures).signals
    with runtime.using("cpu", "bfloat16"):
        found = calibration.calibrate(model, pictures.float() / 255).signals
    assert all(torch.equal(expected[name].maximum, found[name].maximum) for name in expected)


def test_weights_alone_need_no_graph_and_no_images():
    with pytest.warns(UserWarning, match=r"BatchNorm stays as it is: torch.fx cannot trace Branching"):
        calibrated = calibration.calibrate(Branching().eval(), None, activations=False)
    assert calibrated.signals == {}


def test_signals_of_a_network_that_cannot_be_traced_stay_in_float():
    words = (
        "signals stay in float, weights alone are quantized: torch.fx cannot trace Branching: .*BatchNorm stays, too: n"
    )
    with pytest.warns(UserWarning, match=words):
        calibrated = calibration.calibrate(Branching().eval(), PICTURES)
    assert calibrated.signals == {}
    assert not hasattr(calibrated.network, "quantizers")


class Stepping(nn.Module):
    """Changes under another name what it reads later, which no trace shows."""

    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = x = self.first(x)
        y += 1
        return (self.conv(x) + x).mean((2, 3))


def test_a_trace_that_computes_something_else_is_refused():
    with pytest.raises(
        ValueError, match=r"tracing .* changes what Stepping computes: .* weights alone \(activations=Fal"
    ):
        calibration.calibrate(Stepping().eval(), PICTURES)
    calibrated = calibration.calibrate(Stepping().eval(), PICTURES, activations=False)
    assert calibrated.signals == {}


def test_double_precision_is_quantized_in_single():
    model, pictures = quantized_networks.network("SmallCNN", 1.0), quantized_networks.images(4)
    expected = calibration.calibrate(model, pictures)
    found = calibration.calibrate(copy.deepcopy(model).double(), pictures)
    assert {parameter.dtype for parameter in found.network.parameters()} == {torch.float32}
    assert all(torch.equal(expected.signals[name].maximum, found.signals[name].maximum) for name in expected.signals)


def test_layers_that_stay_in_float_are_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3), nn.PReLU()).eval()
    with pytest.warns(UserWarning, match=r"stays in float: 1 \(ConvTranspose2d\), 2 \(PReLU\)"):
        calibration.calibrate(model, quantized_networks.images(2))


def spoiled(model, name, value):
    """The network with a value in one of its tensors that is not finite, or makes folding BatchNorm not finite."""
    tensor = model.state_dict()[name]
    tensor[(0,) * tensor.dim()] = value
    return model


def loud():
    """A network whose first signal leaves the range of float32."""
    model = quantized_networks.network()
    model.stem.conv.weight.data.mul_(1e38)
    return model


NETWORK, PICTURES = quantized_networks.network, quantized_networks.images(2)
CONV, NORM = "stage2.0.body.1.conv.weight", "stem.norm.running_var"
ALONE = {"activations": False}
NOT_FINITE = r"layer stage2\.0\.body\.1\.conv: 1 of 2304 values of weight are NaN or infinite"
NO_STATISTIC = r"layer stem\.(norm|conv): (1|27) of \d+ values of (running_var|weight) are NaN"
RANGE = r"expected calibration images in \[0, 1\], got "


@pytest.mark.parametrize(
    ("make", "images", "options", "words"),
    [
        (NETWORK, PICTURES[:0], {}, "expected calibration images, got none; 1,024 plain training images are plenty"),
        (NETWORK, PICTURES[0], {}, r"expected calibration images \(N, C, H, W\), got shape \(3, 32, 32\)"),
        (NETWORK, quantized_networks.images(2, channels=4), {}, r"of shape \(2, 4, 32, 32\) do not fit the network"),
        (lambda: NETWORK("AlexNet"), quantized_networks.images(2, size=16), {}, r"shape \(2, 3, 16, 16\) do not fit"),
        (NETWORK, PICTURES.float(), {}, RANGE + r"\[.*, 2\d\d\]; normalization belongs inside the model"),
        (NETWORK, torch.full((2, 3, 32, 32), torch.nan), {}, RANGE + r"\[nan, nan\]; they hold NaN"),
        (NETWORK, PICTURES, {"ranges": "kl"}, r"expected ranges minmax \| percentile \| mse, got 'kl'"),
        (lambda: spoiled(NETWORK(), CONV, torch.nan), PICTURES, {}, NOT_FINITE),
        (lambda: spoiled(NETWORK(), CONV, torch.inf), PICTURES, ALONE, NOT_FINITE),
        (lambda: spoiled(NETWORK(), NORM, torch.nan), PICTURES, ALONE, NO_STATISTIC),
        (lambda: spoiled(NETWORK(), NORM, -1.0), PICTURES, {}, NO_STATISTIC),
        (lambda: spoiled(Branching(), "norm.running_mean", torch.nan), None, ALONE, "norm: 1 of 2 values of running_m"),
        (loud, PICTURES, {}, "signal stem_activation is not finite on the calibration images"),
    ],
)
def test_errors(make, images, options, words):
    with pytest.raises(ValueError, match=words):
        calibration.calibrate(make().eval(), images, **options)
