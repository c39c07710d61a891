"""Cross-layer equalization: nothing changes in float, and ranges become equal."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib import models, quantization
from rqlib.core import layers
from rqlib.quantization import equalization
from tests import quantized_networks

FAMILIES = [*models.MODELS, "torchvision:mobilenet_v2", "torchvision:resnet18"]
WIDTHS = {"SmallCNN": 1.0, "WRN_28_4": 0.1, "WRN_28_10": 0.05, "WRN_16_8": 0.1, "ResNet_152": 0.0625}


def chain(activation=nn.ReLU, kind=nn.Conv2d):
    """1x1, depthwise and 1x1 convolution; the channels differ in range by up to 100."""
    torch.manual_seed(0)
    parts = [kind(3, 8, 1), activation(), kind(8, 8, 3, groups=8), activation(), kind(8, 4, 1)]
    model = nn.Sequential(*parts, nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with torch.no_grad():
        parts[0].weight *= (spread := torch.logspace(-1, 1, 8).view(-1, 1, 1, 1))
        parts[0].bias *= spread.flatten()
        parts[2].weight /= spread
    return model.eval()


def ranges(model):
    """The largest weights that produce and that read each channel of the chain."""
    first, middle, last = (model.get_submodule(name).weight.detach().abs() for name in "024")
    return first.amax((1, 2, 3)), middle.amax((1, 2, 3)), last.amax((0, 2, 3))


@pytest.mark.parametrize("name", FAMILIES)
def test_computes_what_the_network_computes(name):
    model = quantized_networks.network(name, 1.0 if ":" in name else WIDTHS.get(name, 0.125)).double()
    for _, norm in layers.batchnorms(model):
        norm.eps = 0.1  # tame: deep networks with random weights amplify every rounding
    images = quantized_networks.images(4)
    equal, factors = equalization.equalized(model, images)
    with torch.no_grad():
        expected, got = model.float()(images / 255), equal(images / 255)
    assert factors
    assert_close(got, expected, rtol=1e-5, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity])
def test_three_layers_get_the_geometric_mean_of_their_ranges(activation):
    model = chain(activation)
    before = torch.stack(ranges(model))
    equal, factors = equalization.equalized(model)
    assert_close(torch.stack(ranges(equal)), before.prod(0).pow(1 / 3).expand(3, -1), rtol=2e-3, atol=0)
    assert_close(factors["2"], before[0] / before.prod(0).pow(1 / 3), rtol=2e-3, atol=0, check_dtype=False)
    x = torch.rand(4, 3, 8, 8)
    assert_close(equal(x), model(x), rtol=1e-5, atol=1e-5)


def test_two_layers_follow_the_formula_and_flattening_keeps_channels_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
    first, second = (model[index].weight.detach().clone() for index in (0, 3))
    equal, _ = equalization.equalized(model)
    produced, read = first.abs().amax((1, 2, 3)), second.view(5, 6, 36).abs().amax((0, 2))
    factors = (produced / read).sqrt()
    assert_close(equal.get_submodule("0").weight, first / factors.view(-1, 1, 1, 1))
    assert_close(equal.get_submodule("0").bias, model[0].bias / factors)
    assert_close(equal.get_submodule("3").weight, second * factors.repeat_interleave(36))


def test_channels_without_weights_stay():
    model = chain()
    with torch.no_grad():
        model[0].weight[3], model[4].weight[:, 5] = 0, 0
    equal, factors = equalization.equalized(model)
    assert factors["2"][3] == 1
    assert all(parameter.isfinite().all() for parameter in equal.parameters())
    x = torch.rand(4, 3, 8, 8)
    assert_close(equal(x), model(x), rtol=1e-5, atol=1e-5)


def test_relu6_is_passed_only_as_relu():
    model = chain(nn.ReLU6)
    with pytest.raises(ValueError, match="no two layers follow each other"):
        equalization.equalized(model)
    equal, factors = equalization.equalized(model, quantized_networks.images(4), relu6_as_relu=True)
    assert set(factors) == {"2", "4"}
    assert not any(isinstance(module, nn.ReLU6) for module in equal.modules())


def test_tied_layers_and_branches_are_left_alone():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.two.weight = self.one.weight

        def forward(self, x):
            x = self.stem(x).relu()
            return (self.two(self.one(x).relu()) + x).mean((2, 3))

    with pytest.raises(ValueError, match="nothing can be equalized"):
        equalization.equalized(Branches().eval())


def test_a_network_with_unequal_channels_keeps_more_of_its_logits():
    model, pictures = nn.Sequential(*chain()[:5], nn.Flatten()).eval(), quantized_networks.images(16, size=8)
    with torch.no_grad():
        expected = model(pictures / 255)
        plain, equal = (
            quantization.ptq(model, "INT_4", pictures, activations="INT_16", ranges="minmax", repairs=repairs)
            for repairs in ((), ("equalization",))
        )
        errors = [(network(pictures / 255) - expected).norm() for network in (plain, equal)]
    assert errors[1] < 0.5 * errors[0]
