"""Exported files in onnxruntime against the integer form: the same logits, bit for bit, where sums are exact."""

import warnings

import numpy
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn
from torch.testing import assert_close

from rqlib import measures, models, pruning, quantization
from rqlib.core import provenance
from rqlib.core.vocabulary import ImageSpec
from rqlib.quantization import FLOAT, INT, POT, agreement, integer, onnx_export
from tests import quantized_networks

TORCHVISION = ("mobilenet_v3_small", "resnet18", "densenet121", "shufflenet_v2_x1_0")
FAMILIES = [*models.MODELS, *(f"torchvision:{name}" for name in TORCHVISION)]
WIDTHS = {"SmallCNN": 1.0, "WRN_28_4": 0.1, "WRN_28_10": 0.05, "WRN_16_8": 0.05} | {
    "ResNet_152": 0.0625, "ResNet_50": 0.0625, "VGG_16": 0.0625, "VGG_19": 0.0625,
}  # fmt: skip
STAYS = pytest.mark.filterwarnings("ignore:BatchNorm stays as it is")


def run(path, images):
    """The logits of onnxruntime without graph optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"pixels": (images / 255).numpy()})[0])


def both(network, path, images, **options):
    """The logits of the integer form, or of a network without one, and those of its exported file."""
    path = onnx_export.export(network, path, **options)
    has_codes = hasattr(network, "quantizers")
    here = integer.lower(network, arithmetic="float32", batch_size=8) if has_codes else network
    with torch.no_grad():
        return here(images / 255), run(path, images)


def weight_types(path):
    """Type of constants in the file -> how many of them have more than one axis."""
    tensors = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1]
    names = [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors]
    return {name: names.count(name) for name in names}


@STAYS
@pytest.mark.parametrize(
    ("name", "format"), [*((name, "INT_8") for name in FAMILIES), ("ResNet_18", "INT_4"), ("MobileNetV2", "INT_4")]
)
def test_every_family_has_the_logits_of_its_integer_form(tmp_path, monkeypatch, name, format):
    monkeypatch.setattr(agreement, "check", lambda *_, **__: None)  # tested with the integer form
    model = quantized_networks.network(name, 1.0 if ":" in name else WIDTHS.get(name, 0.125))
    network = quantization.ptq(model, format, quantized_networks.images(8))
    expected, got = both(network, tmp_path / "x.onnx", quantized_networks.images(10, seed=1))
    assert torch.equal(got, expected)
    assert set(weight_types(tmp_path / "x.onnx")) <= {format.replace("_", ""), "FLOAT"}


@pytest.mark.parametrize(("format", "bits"), [("INT_8", 8), ("INT_4", 4)])
def test_the_file_is_as_large_as_its_weights(tmp_path, format, bits):
    model = quantized_networks.network("VGG_16_HYDRA", 0.25)
    network = quantization.ptq(model, format, quantized_networks.images(4))
    path = onnx_export.export(network, tmp_path / "x.onnx")
    found = measures.storage(network)
    assert path.stat().st_size == pytest.approx(
        (measures.weight_count(network) * bits + found["other_bits"]) / 8, rel=0.1
    )


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("nonnegative", ["unsigned", "zero_point"])
@pytest.mark.parametrize("bits", range(2, 17))
def test_every_number_of_bits(tmp_path, bits, granularity, nonnegative):
    pictures = quantized_networks.images(8, size=8)
    setting = {"granularity": granularity, "nonnegative": nonnegative}
    network = quantization.ptq(Everything().eval(), INT(bits), pictures, **setting)
    expected, got = both(network, tmp_path / "x.onnx", pictures)
    steps = (got - expected).abs().max() / integer.lower(network).quantizers.last.value_of_code
    if granularity == "tensor" and bits <= 8:
        assert steps == 0
    else:  # the scales of channels are in the weights, and 16-bit sums have more than 24 bits: both round
        assert steps < 8
    kind = next(name for most, name in ((2, "INT2"), (4, "INT4"), (8, "INT8"), (16, "INT16")) if bits <= most)
    assert weight_types(tmp_path / "x.onnx")[kind] == 4


@pytest.mark.parametrize("nonnegative", ["unsigned", "signed"])
@pytest.mark.parametrize(
    "format", [POT(4), POT(8), FLOAT(8, 4), FLOAT(6, 3), FLOAT(8, 1), INT(20)], ids=lambda f: f.name
)
def test_other_formats_of_signals_are_rounded_by_ordinary_operators(tmp_path, format, nonnegative):
    pictures = quantized_networks.images(8, size=8)
    network = quantization.ptq(Everything().eval(), format, pictures, nonnegative=nonnegative)
    expected, got = both(network, tmp_path / "x.onnx", pictures)
    assert_close(got, expected, rtol=2.0**-format.mantissa_bits, atol=0.02 * expected.abs().max().item())
    assert (got - expected).norm() < 0.02 * expected.norm()


class Everything(nn.Module):
    """Signals of both signs, a sum, a concatenation, pools, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.body, self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.pool, self.last = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(self.stem(2 * x - 1)).relu()
        y = F.hardswish(self.depthwise(self.body(x)) + x)
        z = torch.cat([self.pool(y), torch.relu(self.pool(x))], 1)
        return self.last(torch.flatten(F.adaptive_avg_pool2d(z, 1), 1))


@pytest.mark.parametrize(
    ("format", "levels", "kind"),
    [
        (FLOAT(8, 4), slice(1, -1), "FLOAT8E4M3FN"),  # up to 448
        (FLOAT(8, 4), slice(0, None), "FLOAT"),  # up to 480, which that type lacks
        (FLOAT(8, 5), slice(4, -4), "FLOAT8E5M2"),
        (FLOAT(8, 5), slice(0, None), "FLOAT"),
    ],
)
def test_weights_that_are_8_bit_floats_are_packed_as_such(tmp_path, format, levels, kind):
    values = format.levels[levels]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 81, 5, bias=False)).eval()
    model[1].weight.data = values[torch.arange(5 * 243) % len(values)].view(5, 243) / format.max
    network = quantization.ptq(model, format, None, activations=False, ranges="minmax")
    network[1].parametrizations.weight[0].scale.fill_(1 / format.max)
    expected, got = both(network, tmp_path / "x.onnx", quantized_networks.images(4, size=9), shape=(3, 9, 9))
    assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert weight_types(tmp_path / "x.onnx") == {kind: 1}


@STAYS
@pytest.mark.parametrize("source", ["float", "weights alone", "masked", "smaller"])
def test_networks_with_float_signals_are_exported_too(tmp_path, source):
    spec, pictures = ImageSpec(), quantized_networks.images(6)
    model = quantized_networks.network("ResNet_18")
    if source == "smaller":
        with torch.no_grad():
            model.stage1[0].body[0].conv.weight[:3] = 0
            model.stage1[0].body[0].norm.weight[:3], model.stage1[0].body[0].norm.bias[:3] = 0, 0
        model = pruning.remove_channels(model, pictures[:1] / 255)
    if source == "masked":
        nn.utils.parametrize.register_parametrization(model.stem.conv, "weight", Masked())
    network = quantization.ptq(model, "INT_4", None, activations=False) if source == "weights alone" else model
    expected, got = both(network, tmp_path / "x.onnx", pictures, shape=spec.shape)
    assert_close(got, expected, rtol=1e-4, atol=1e-4)


class Masked(nn.Module):
    def forward(self, weight):
        return weight * (weight > 0)


def test_removed_channels_are_gone_in_the_file(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval()
    with torch.no_grad():
        model[0].weight[:5], model[0].bias[:5] = 0, 0
    pictures = quantized_networks.images(8, size=8)
    network = quantization.ptq(model, "INT_8", pictures)
    path = onnx_export.export(network, tmp_path / "x.onnx")
    shapes = [tuple(t.dims) for t in onnx.load(path).graph.initializer if len(t.dims) == 4]
    assert shapes == [(8, 3, 3, 3), (4, 8, 3, 3)]


def test_the_file_says_what_it_is(tmp_path):
    model, pictures, _ = quantized_networks.small()
    network = quantization.ptq(model, "INT_4", pictures, activations="INT_8", granularity="channel")
    path = onnx_export.export(network, tmp_path / "x.onnx", facts={"ranges": "mse", "accuracy": 0.5})
    loaded = onnx.load(path)
    said = {prop.key: prop.value for prop in loaded.metadata_props}
    commit = provenance.commit(path.parent)["commit"]
    assert said.pop("commit") != commit
    expected = {"weights": "INT_4", "signals": "INT_8, UINT_8", "granularity": "channel"}
    assert said == expected | {"ranges": "mse", "accuracy": "0.5"}
    assert [dim.dim_param or dim.dim_value for dim in loaded.graph.input[0].type.tensor_type.shape.dim][1:] == [
        3,
        32,
        32,
    ]
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "images"
    packed = [numpy_helper.to_array(t) for t in loaded.graph.initializer if len(t.dims) == 4]
    codes = integer.weight_codes(network.get_submodule("features.0.conv"))[0]
    assert any(numpy.array_equal(array.astype(numpy.float64), codes.numpy()) for array in packed)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.RReLU(), nn.Flatten()), {}, "operation _1 has no ONNX form here: RReLU"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, padding_mode="circular"), nn.Flatten()), {}, "padding_mode 'circular'"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), {"shape": None}, r"say shape=\(C, H, W\)"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()), {}, "without running statistics"),
        (nn.Sequential(nn.AdaptiveMaxPool2d(3), nn.Flatten()), {}, "which are not multiples"),
    ],
)  # fmt: skip
def test_what_has_no_form_is_named(tmp_path, model, options, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=words):
            onnx_export.export(model.eval(), tmp_path / "x.onnx", **{"shape": (3, 8, 8)} | options)
    assert not list(tmp_path.iterdir())


def test_legacy_signals_have_no_form(tmp_path):
    pictures = quantized_networks.images(8, size=8)
    network = quantization.ptq(Everything().eval(), "FLOAT_8_E1_LEGACY", pictures)
    with pytest.raises(ValueError, match="signals in U?FLOAT_8_E1_LEGACY"):
        onnx_export.export(network, tmp_path / "x.onnx")
