import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from rqlib import models, quantization
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.quantization import layer_formats

COLOR = ImageSpec()
GRAY = ImageSpec(1, 28, 28, 10, (0.13,), (0.31,))


def flops(model, spec):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *spec.shape))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [*models.MODELS, "torchvision:mobilenet_v2", "torchvision:densenet121"])
def test_macs_are_those_of_the_flop_counter_and_no_parameter_is_lost(name):
    width = {"WRN_28_10": 0.05, "SmallCNN": 1.0}.get(name, 1.0 if ":" in name else 0.125)
    model = models.build(name, COLOR, width=width)
    totals = cost.totals(cost.profile(model, COLOR))
    assert 2 * totals["macs"] == flops(model, COLOR)
    assert totals["params"] == sum(p.numel() for p in model.parameters())
    assert totals["bits"] == 32 * totals["params"]


def test_lenet_by_hand():
    frame = cost.profile(models.build("LeNet", GRAY), GRAY)
    assert frame["kind"].tolist() == ["Conv2d", "Conv2d", "Linear", "Linear"]
    assert frame["params"].tolist() == [520, 25050, 400500, 5010]
    assert frame["macs"].tolist() == [24 * 24 * 500, 8 * 8 * 25000, 400000, 5000]
    assert frame["output_shape"].tolist() == [(20, 24, 24), (50, 8, 8), (500,), (10,)]
    assert frame["layer"].tolist() == ["features.0", "features.2", "classifier.linear1", "classifier.linear2"]
    assert frame["bits"].tolist() == [32 * count for count in frame["params"]]


@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    side=st.integers(8, 12),
)
def test_macs_of_any_convolution(groups, inputs, outputs, kernel, stride, padding, dilation, side):
    channels = groups * inputs
    spec = ImageSpec(channels, side, side + 1, 10, (0.5,) * channels, (0.5,) * channels)
    convolution = nn.Conv2d(channels, groups * outputs, kernel, stride, padding, dilation, groups)
    assert 2 * cost.profile(convolution, spec)["macs"].sum() == flops(convolution, spec)


def test_a_layer_called_twice_counts_twice_and_one_never_called_not_at_all():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 5).double()

        def forward(self, x):
            return self.twice(self.twice(x))

    frame = cost.profile(Net(), COLOR).set_index("layer")
    assert frame.loc["twice", "macs"] * 2 == flops(Net(), COLOR) == 2 * 2 * 32 * 32 * 81
    assert frame.loc["never", ["params", "macs", "bits", "output_shape"]].tolist() == [25, 0, 64 * 25, None]


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)
        self.score = nn.Parameter(torch.zeros_like(mask))

    def forward(self, weight):
        return weight * self.mask


def test_effective_weights_of_a_parametrized_layer_are_counted():
    model = models.build("LeNet", GRAY)
    before = cost.profile(model, GRAY)
    layer = model.features[2]
    nn.init.constant_(layer.bias, 1.0)
    parametrize.register_parametrization(
        layer, "weight", Masked((torch.arange(20 * 25) % 4 == 0).float().view(20, 5, 5))
    )
    after = cost.profile(model, GRAY)
    unchanged = ["layer", "kind", "params", "macs", "bits", "output_shape"]
    assert after[unchanged].equals(before[unchanged])
    assert after["nonzero"][1] == 50 * 500 // 4 + 50


def layer_with(weight, format=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    if format is not None:
        layer_formats.quantize_weight(layer, format, "channel")
    return nn.Sequential(layer)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_quantized_weight_takes_the_bits_of_its_format_and_its_scales(bits):
    weight = torch.rand(20, 500) + 0.5
    found = cost.storage(layer_with(weight, quantization.INT(bits)))
    assert found == {
        "dense_bits": 32 * 10_000,
        "coded_bits": bits * 10_000 + 32 * 20,
        "index_bits": 0,
        "ratio": 320_000 / (bits * 10_000 + 640),
        "ratio_with_index": 320_000 / (bits * 10_000 + 640),
        "other_bits": 0,
    }


FOUR = torch.tensor([-1.0, 0.5, 2.0, 7.0])[torch.arange(10_000) % 4].view(20, 500)


@pytest.mark.parametrize(("weight", "bits"), [(torch.randn(20, 500), 32 * 10_000), (FOUR, 2 * 10_000 + 4 * 32)])
def test_float_weights_are_stored_as_they_are_and_few_distinct_values_as_a_codebook(weight, bits):
    found = cost.storage(layer_with(weight))
    assert (found["coded_bits"], found["index_bits"]) == (bits, 0)


@pytest.mark.parametrize("kept", [0.3, 0.01])
def test_sparse_weights_pay_for_the_index_too(kept):
    torch.manual_seed(0)
    weight = torch.randn(100, 100) * (torch.rand(100, 100) < kept)
    nonzero = int(weight.count_nonzero())
    found = cost.storage(layer_with(weight))
    assert found["coded_bits"] == 32 * nonzero
    assert found["index_bits"] == math.ceil(math.log2(math.comb(10_000, nonzero)))
    assert found["index_bits"] < min(10_000, nonzero * (math.ceil(math.log2(10_000 / nonzero)) + 2))
    assert found["ratio"] > found["ratio_with_index"] > 1


@given(st.integers(1, 2000), st.floats(0, 1))
@settings(deadline=None)
def test_index_bits_are_the_number_of_choices(count, share):
    nonzero = round(share * count)
    assert abs(cost.index_bits(count, nonzero) - math.log2(math.comb(count, nonzero))) < 1.001


def test_latency_leaves_the_model_as_it_was():
    model = nn.Linear(4, 4).train()
    assert cost.latency(model, torch.rand(2, 4), least_seconds=0.01) > 0
    assert model.training


def test_storage_adds_up_over_layers_and_leaves_biases_and_normalization_to_other_bits():
    one, two = (layer_with(torch.rand(4, 100) + 1, quantization.INT(bits)) for bits in (4, 8))
    both = cost.storage(nn.Sequential(one, two, nn.BatchNorm1d(4)))
    for column in ("dense_bits", "coded_bits", "index_bits"):
        assert both[column] == cost.storage(one)[column] + cost.storage(two)[column]
    assert both["other_bits"] == 4 * 4 * 32 + 64, "two parameters and two statistics per channel, and a counter"
