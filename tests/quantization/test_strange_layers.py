"""Layers that other people write: the integer form, the sweep and the exported file compute what the network does."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import measures, quantization
from rqlib.quantization import bias_correction, calibration, equalization

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
IMAGES = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X = IMAGES.float() / 255


class Activated(nn.BatchNorm2d):
    """A BatchNorm with an activation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class Standardized(nn.Conv2d):
    """A convolution that centers its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class CalledAndRead(nn.Module):
    """A convolution that is called, and whose weight is used once more."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.second(x) + F.conv2d(x, self.second.weight, padding=1)


class InPlaceNormalized(nn.Module):
    """A network that normalizes the image that it is given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x.sub_(0.5).div_(0.25)))


def _one_channel(gamma: float) -> nn.Module:
    norm = nn.BatchNorm2d(1)
    norm.weight.data.fill_(gamma)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3), nn.ReLU(), norm, nn.Conv2d(1, 4, 3))


BODIES = {
    "a BatchNorm with an activation": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8), nn.Conv2d(8, 8, 3)),
    "a standardized weight": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Standardized(8, 8, 3)),
    "a weight that is called and read": CalledAndRead,
    "pixels normalized in place": InPlaceNormalized,
    "a BatchNorm of one channel, negative": lambda: _one_channel(-1.5),
    "a BatchNorm of one channel, zero": lambda: _one_channel(0.0),
}


def network(body: nn.Module) -> nn.Module:
    """The body, a mean over the image and a linear layer; BatchNorms have statistics that show."""
    torch.manual_seed(1)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    channels = body(X[:1].clone()).shape[1]
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)).eval()


@pytest.mark.filterwarnings("ignore:BatchNorm stays", "ignore:no call of a convolution")
@pytest.mark.parametrize("body", BODIES)
def test_the_sweep_scores_it(body):
    model = network(BODIES[body]())
    with torch.no_grad():
        labels = model(X.clone()).argmax(1)
    row = quantization.sweep(model, ["INT_8"], IMAGES, IMAGES, labels).iloc[0]
    assert row.logit_error < 0.01
    assert measures.accuracy(model, IMAGES, labels) == 1


@pytest.mark.parametrize("format", ["INT_8", "INT_4"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_every_setting_of_onnxruntime_runs_the_file(granularity, format, tmp_path):
    torch.manual_seed(0)
    model = network(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()))
    quantized = quantization.ptq(model, format, IMAGES, granularity=granularity)
    found = quantization.deploy(quantized, tmp_path / "x.onnx", IMAGES, torch.zeros(40, dtype=torch.int64))
    assert len(found) == 3
    assert found.notna().all(axis=None)
    assert found.differing[0] == 0


@pytest.mark.filterwarnings("ignore:BatchNorm stays")
@pytest.mark.parametrize("gamma", [-1.5, 1.5])
def test_a_negative_factor_is_exported(gamma, tmp_path):
    quantized = quantization.ptq(network(_one_channel(gamma)), "INT_4", IMAGES)
    found = quantization.deploy(quantized, tmp_path / "x.onnx", IMAGES, torch.zeros(40, dtype=torch.int64))
    assert found.differing[0] == 0


def test_the_number_of_images_is_no_constant_of_the_file(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)) * x.size(0)

    with pytest.raises(ValueError, match="has no ONNX form"):
        quantization.export(Counting(), tmp_path / "x.onnx", shape=(3, 8, 8))


def test_a_double_network_is_exported_and_keeps_its_mode(tmp_path):
    model = network(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())).double().train()
    quantization.export(model, tmp_path / "x.onnx", shape=(3, 8, 8))
    assert model.training
    assert next(model.parameters()).dtype == torch.float64


def test_bias_correction_of_a_layer_that_is_called_twice_and_of_tied_biases():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.b = nn.Conv2d(4, 4, 3, padding=1)
            self.b.bias, self.f = self.c.bias, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.c(F.relu(self.c(F.relu(self.a(x))))))
            return self.f(F.relu(self.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    calibrated = calibration.calibrate(Twice().eval(), IMAGES, ranges="minmax")
    quantized = quantization.post_training.apply(calibrated, "INT_3", activations=False)
    bias_correction.by_images(quantized, calibrated.network, IMAGES)
    with torch.no_grad():
        means = [found(X).mean(0) for found in (quantized, calibrated.network)]
    torch.testing.assert_close(*means, atol=1e-5, rtol=0)


def test_equalization_does_not_pass_a_flattening_within_channels():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix, self.out = nn.Conv2d(3, 8, 5), nn.Linear(16, 8), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mix(F.relu(self.conv(x)).flatten(2)).flatten(1))

    torch.manual_seed(0)
    model = Tokens().eval()
    with pytest.raises(ValueError, match="nothing can be equalized"):
        equalization.equalized(model)
