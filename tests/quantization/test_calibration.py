"""Folding, ranges of signals against the signals themselves, and what is refused."""

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
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    calibrated = calibration.calibrate(model, pictures)
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not list(layers.batchnorms(calibrated.network))
    assert calibrated.unfolded == ()
    with torch.no_grad():
        assert_close(calibrated.network(pictures / 255), model.eval()(pictures / 255), rtol=1e-3, atol=1e-4)


def test_batchnorm_that_cannot_be_folded_is_named():
    with pytest.warns(
        UserWarning, match=r"BatchNorm stays as it is: it has no convolution .*: .*group1\.1\.activate\.norm"
    ):
        calibrated = calibration.calibrate(quantized_networks.network("WRN_16_8", 0.1), quantized_networks.images(2))
    assert "group1.1.activate.norm" in calibrated.unfolded
    assert "group1.1.body.activate.norm" not in calibrated.unfolded


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
        assert_close(observed.maximum, signal.abs().max().view(1), rtol=1e-4, atol=1e-5)
        assert observed.counts.sum() == signal.numel()
        expected = observers.histogram_of(signal.reshape(1, -1), observed.maximum)
        assert (observed.counts - expected).abs().sum() <= 1e-3 * signal.numel() + 4


def test_ranges_do_not_depend_on_the_policy():
    model, pictures = quantized_networks.network(), quantized_networks.images(8)
    found = []
    for precision in ("float32", "bfloat16"):
        with runtime.using("cpu", precision):
            found.append(calibration.calibrate(model, pictures).signals)
    assert all(torch.equal(found[0][name].maximum, found[1][name].maximum) for name in found[0])


def test_float_images_are_pixels_too():
    model, pictures = quantized_networks.network(), quantized_networks.images(4)
    one, other = (calibration.calibrate(model, images).signals for images in (pictures, pictures.float() / 255))
    assert all(torch.equal(one[name].maximum, other[name].maximum) for name in one)


def test_weights_alone_need_no_graph_and_no_images():
    with pytest.warns(UserWarning, match=r"BatchNorm stays as it is: torch.fx cannot trace Branching"):
        calibrated = calibration.calibrate(Branching().eval(), None, activations=False)
    assert calibrated.unfolded == ("norm",)
    assert calibrated.signals == {}


def test_a_network_that_cannot_be_traced_is_refused():
    with pytest.raises(ValueError, match=r"torch.fx cannot trace Branching: .*activations=False"):
        calibration.calibrate(Branching().eval(), quantized_networks.images(2))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (quantized_networks.images(2)[:0], "expected calibration images, got none; 1,024 plain training images"),
        (quantized_networks.images(2)[0], r"expected calibration images \(N, C, H, W\), got shape \(3, 32, 32\)"),
        (
            quantized_networks.images(2, channels=4),
            r"calibration images of shape \(2, 4, 32, 32\) do not fit the network",
        ),
        (
            quantized_networks.images(2).float(),
            r"expected calibration images in \[0, 1\], got \[.*, 2\d\d\]; normalization belongs inside the model",
        ),
        (quantized_networks.images(2) / 255 - 0.5, r"expected calibration images in \[0, 1\], got \[-0\..*, 0\..*\]"),
        (
            torch.full((2, 3, 32, 32), torch.nan),
            r"expected calibration images in \[0, 1\], got \[nan, nan\]; they hold NaN",
        ),
        (quantized_networks.images(2, size=16), r"calibration images of shape \(2, 3, 16, 16\) do not fit"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        calibration.calibrate(quantized_networks.network("AlexNet"), images)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("activations", [True, False])
def test_weights_that_are_not_finite_are_named(value, activations):
    model = quantized_networks.network()
    model.stage2[0].body[1].conv.weight.data[0, 0, 0] = value
    with pytest.raises(
        ValueError, match=r"layer stage2\.0\.body\.1\.conv: 3 of 2304 values of weight are NaN or infinite"
    ):
        calibration.calibrate(model, quantized_networks.images(2), activations=activations)


@pytest.mark.parametrize("activations", [True, False])
@pytest.mark.parametrize("value", [torch.nan, -1.0])
def test_statistics_that_are_not_finite_are_named(value, activations):
    model = quantized_networks.network()
    model.stem.norm.running_var[3] = value
    with pytest.raises(
        ValueError, match=r"layer stem\.(norm|conv): (1|27) of \d+ values of (running_var|weight) are NaN"
    ):
        calibration.calibrate(model, quantized_networks.images(2), activations=activations)


def test_statistics_of_a_network_that_cannot_be_traced_are_checked_too():
    model = Branching().eval()
    model.norm.running_mean[0] = torch.nan
    with pytest.raises(ValueError, match=r"layer norm: 1 of 2 values of running_mean are NaN or infinite"):
        calibration.calibrate(model, None, activations=False)


def test_layers_that_stay_in_float_are_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3), nn.PReLU()).eval()
    with pytest.warns(UserWarning, match=r"stays in float: 1 \(ConvTranspose2d\), 2 \(PReLU\)"):
        calibration.calibrate(model, quantized_networks.images(2))


def test_signals_that_are_not_finite_are_named():
    model = quantized_networks.network()
    model.stem.conv.weight.data.mul_(1e38)
    with pytest.raises(ValueError, match="signal stem_activation is not finite on the calibration images"):
        calibration.calibrate(model, quantized_networks.images(2))


def test_unknown_ranges_are_refused():
    with pytest.raises(ValueError, match=r"expected ranges minmax \| percentile \| mse, got 'kl'"):
        calibration.calibrate(quantized_networks.network(), quantized_networks.images(2), ranges="kl")
