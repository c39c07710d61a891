"""Bias correction: mean outputs are those of the float network; means behind BatchNorm follow the closed form."""

import pytest
import torch
from scipy.stats import norm as normal
from torch import nn
from torch.testing import assert_close

from rqlib import quantization
from rqlib.core import layers
from rqlib.quantization import bias_correction, fake_quantize
from tests import quantized_networks

LONE_BATCHNORM = pytest.mark.filterwarnings("ignore:BatchNorm stays as it is")
FIRST_LAYER = pytest.mark.filterwarnings("ignore:bias correction. no BatchNorm tells")


def means(network, x):
    """The mean of each output channel of every layer."""
    with torch.no_grad():
        found = layers.outputs(network, [name for name, _ in layers.weighted_layers(network)], x)
    return {name: output.mean([0, *range(2, output.dim())]) for name, output in found.items()}


@pytest.mark.parametrize("format", ["INT_3", "POT_4"])
@pytest.mark.parametrize("activations", [True, False])
@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18", "MobileNetV2"])
def test_every_layer_has_the_mean_output_of_the_float_network(name, activations, format):
    model, pictures = (
        quantized_networks.network(name, 1.0 if name == "SmallCNN" else 0.125),
        quantized_networks.images(16),
    )
    options = {"activations": activations}
    network = quantization.ptq(model, format, pictures, **options, repairs=("bias_correction",))
    plain = quantization.ptq(model, format, pictures, **options)
    exact = layers.fold_batchnorm(model)
    expected, got, before = (means(network, pictures / 255) for network in (exact, network, plain))
    assert all(torch.allclose(got[name], expected[name], rtol=1e-4, atol=1e-4) for name in expected)
    assert any((before[name] - expected[name]).abs().max() > 0.01 for name in expected)


@pytest.mark.parametrize(
    ("activation", "low", "high"), [(nn.ReLU(), 0, torch.inf), (nn.ReLU6(), 0, 6), (nn.Hardtanh(-1, 2), -1, 2)]
)
def test_behind_batchnorm_the_mean_is_that_of_a_clipped_normal(activation, low, high):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 4, 1), nn.Flatten()).eval()
    nn.init.normal_(model[1].weight, std=4)
    nn.init.normal_(model[1].bias, std=4)
    got = bias_correction.expected_inputs(model)
    assert set(got) == {"3"}
    center, width = model[1].bias.detach().double().numpy(), model[1].weight.detach().abs().double().numpy()
    ends = [(end - center) / width for end in (low, high)]
    inside = normal.cdf(ends[1]) - normal.cdf(ends[0])
    expected = center * inside - width * (normal.pdf(ends[1]) - normal.pdf(ends[0])) + low * normal.cdf(ends[0])
    expected += 0 if high == torch.inf else high * normal.sf(ends[1])
    assert_close(got["3"].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@FIRST_LAYER
def test_by_batchnorm_the_bias_loses_the_expected_error():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*parts, nn.LazyLinear(3)).eval()
    pictures = quantized_networks.images(4, size=8)
    model(pictures / 255)
    plain, repaired = (
        quantization.ptq(model, "INT_3", pictures, activations=False, repairs=repairs)
        for repairs in ((), ("bias_correction_batchnorm",))
    )
    layer = plain[3]
    error = layer.weight - model[3].weight
    mean = bias_correction.expected_inputs(model)["3"]
    shift = torch.stack([(error[j].sum((1, 2)) * mean[4 * (j // 4) : 4 * (j // 4) + 4]).sum() for j in range(8)])
    assert_close(repaired[3].bias, layer.bias - shift)
    assert torch.equal(repaired[0].bias, plain[0].bias)


@LONE_BATCHNORM
def test_means_pass_pools_sums_and_concatenations():
    class Paths(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.summed, self.joined, self.last = nn.Conv2d(3, 2, 1), nn.Conv2d(6, 2, 1), nn.Linear(8, 2)

        def forward(self, x):
            x, y = self.one(x), torch.nn.functional.silu(self.two(x))
            z = self.summed(x + y) + self.joined(torch.cat([x, y], 1))
            return self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(z, 2), 1))

    model = Paths().eval()
    for norm in (model.one, model.two):
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.weight, 0.5, 2)
    got = bias_correction.expected_inputs(model)
    assert set(got) == {"summed", "joined"}
    rng = torch.Generator().manual_seed(0)
    samples = model.two.bias + model.two.weight * torch.randn(200_000, 3, generator=rng)
    silu = nn.functional.silu(samples).mean(0)
    assert_close(got["summed"], model.one.bias + silu, rtol=0, atol=0.02)
    assert_close(got["joined"], torch.cat([model.one.bias, silu]), rtol=0, atol=0.02)


def test_layers_of_which_nothing_is_known_are_named():
    model, pictures, _ = quantized_networks.small()
    first, *_ = (name for name, _ in layers.weighted_layers(model))
    with pytest.warns(UserWarning, match=f"no BatchNorm tells the mean input of {first}.*their biases stay"):
        quantization.ptq(model, "INT_4", pictures, repairs=("bias_correction_batchnorm",))


def test_layers_without_bias_are_given_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5, bias=False)).eval()
    network = quantization.ptq(model, "INT_2", quantized_networks.images(8, size=8), repairs=("bias_correction",))
    assert all(layer.bias is not None for _, layer in layers.weighted_layers(network))
    assert all(fake_quantize.quantizer(layer) for _, layer in layers.weighted_layers(network))


@LONE_BATCHNORM
@FIRST_LAYER
def test_behind_batchnorm_a_layer_without_bias_is_given_one_of_its_own_precision():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.Flatten()]
    pictures = quantized_networks.images(4, size=8)
    repairs = ("bias_correction_batchnorm",)
    network = quantization.ptq(nn.Sequential(*parts).eval(), "INT_3", pictures, activations=False, repairs=repairs)
    assert {bias.dtype for name, bias in network.named_parameters() if name.endswith("bias")} == {torch.float32}
    assert network(pictures / 255).isfinite().all()


@FIRST_LAYER
def test_equalization_divides_the_expected_inputs():
    model, pictures = quantized_networks.network("MobileNetV2"), quantized_networks.images(8)
    repairs = ("equalization_without_relu6", "bias_correction_batchnorm")
    network = quantization.ptq(model, "INT_8", pictures, activations=False, repairs=repairs)
    plain = quantization.ptq(model, "INT_8", pictures, activations=False, repairs=repairs[:1])
    shifts = [
        (ours.bias - theirs.bias).norm() / theirs.bias.norm()
        for (_, ours), (_, theirs) in zip(layers.weighted_layers(network), layers.weighted_layers(plain), strict=True)
    ]
    assert 0 < max(shifts) < 0.2


@pytest.mark.parametrize(
    ("repairs", "options", "words"),
    [
        (("equalisation",), {}, r"unknown repair 'equalisation' \(did you mean 'equalization'\?\)"),
        (("bias_correction", "bias_correction_batchnorm"), {}, "one equalization and one bias correction at most"),
        (("equalization", "equalization_without_relu6"), {}, "one equalization and one bias correction at most"),
        ("bias_correction", {"bias": "seed"}, "bias='seed' rounds the biases that a bias correction changes"),
    ],
)
def test_impossible_repairs_are_refused(repairs, options, words):
    model, pictures, _ = quantized_networks.small()
    with pytest.raises(ValueError, match=words):
        quantization.ptq(model, "INT_4", pictures, repairs=repairs, **options)
