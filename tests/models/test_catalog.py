"""Networks by name: the figures of the papers, the structure of torchvision's, the user's own, faults."""

import functools
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

from rqlib.core import files, layers, torchvision_guard
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.models import blocks, catalog, wide_resnet
from tests import networks

COLOR = ImageSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
GRAY = ImageSpec(1, 28, 28, 10, (0.13,), (0.31,))
NAMES = [*catalog.MODELS]
every_network = pytest.mark.parametrize("name", NAMES)
narrow = functools.cache(networks.narrow)


def spec_of(name):
    return GRAY if name == "LeNet" else COLOR


def on_meta(name, spec):
    with torch.device("meta"):
        return catalog.build(name, spec)


def images(spec, count=4):
    return torch.rand(count, *spec.shape, generator=torch.Generator().manual_seed(1))


# The figures of the papers and of the sources, at width 1 and 10 classes.

PARAMS_AND_MACS = {
    "AlexNet": ("3.87M", "70.1M"),
    "AlexNet_BN": ("3.87M", "70.3M"),
    "VGG_16": ("33.65M", "333M"),
    "VGG_19": ("38.96M", "418M"),
    "Inception_BN": ("5.88M", "1.46G"),
    "MobileNetV2": ("2.25M", "68.3M"),
    "ResNet_18": ("11.17M", "557M"),
    "ResNet_50": ("23.52M", "1.31G"),
    "ResNet_152": ("58.16M", "3.74G"),
}
WEIGHTS = {
    "WRN_28_4": 5_841_840,
    "WRN_28_10": 36_461_232,
    "WRN_16_8": 10_954_160,
    "VGG_16_HYDRA": 15_302_848,
    "ResNet_34": 21_265_088,
    "CNN_small": 214_760,
    "CNN_large": 2_465_632,
    "LeNet": 430_500,
    "SmallCNN": 82_890,
}


def printed(number, figure):
    """The number in the figure's unit and with as many digits."""
    digits = len(figure[:-1].partition(".")[2])
    return f"{number / {'M': 1e6, 'G': 1e9}[figure[-1]]:.{digits}f}{figure[-1]}"


def operations(model, spec):
    """Multiply-accumulates and what ptflops adds: biases, BatchNorm (2 an element), ReLU, inputs of pools."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, layers.WEIGHTED):
            total += output.numel() * module.weight[0].numel() + (output.numel() if module.bias is not None else 0)
        elif isinstance(module, layers.NORMALIZATIONS):
            total += 2 * output.numel()
        elif isinstance(module, nn.ReLU | nn.ReLU6):
            total += output.numel()
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            total += inputs[0].numel()

    for module in model.modules():
        module.register_forward_hook(count)
    model.eval()(torch.empty(1, *spec.shape, device="meta"))
    return total


@pytest.mark.parametrize("name", PARAMS_AND_MACS)
def test_parameters_and_operations_are_those_of_the_source(name):
    params, macs = PARAMS_AND_MACS[name]
    model = on_meta(name, COLOR)
    assert printed(sum(p.numel() for p in model.parameters()), params) == params
    assert printed(operations(model, COLOR), macs) == macs


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_exactly_those_of_the_source(name):
    assert cost.weight_count(on_meta(name, spec_of(name))) == WEIGHTS[name]


# Structure against torchvision's networks.


@pytest.mark.parametrize(("name", "other"), [("VGG_16", "vgg16_bn"), ("VGG_19", "vgg19_bn")])
def test_vgg_for_imagenet_has_the_parameters_of_torchvision(name, other):
    spec = ImageSpec(height=224, width=224, num_classes=1000)
    with torch.device("meta"):
        expected = torchvision_guard.torchvision().models.get_model(other)
    assert sum(p.numel() for p in on_meta(name, spec).parameters()) == sum(p.numel() for p in expected.parameters())


def test_mobilenet_has_the_weights_of_torchvision_but_for_stem_and_first_expansion():
    with torch.device("meta"):
        expected = cost.weight_count(torchvision_guard.torchvision().models.mobilenet_v2(num_classes=10))
    assert cost.weight_count(on_meta("MobileNetV2", COLOR)) == expected - 32 * 3 * 9 + 32 * 3 + 32 * 32


@pytest.mark.parametrize(("name", "other"), [("ResNet_18", "resnet18"), ("ResNet_50", "resnet50")])
def test_resnet_computes_what_torchvision_computes_behind_the_small_stem(name, other):
    torch.manual_seed(0)
    model = catalog.build(name, COLOR).eval()
    expected = torchvision_guard.torchvision().models.get_model(other, num_classes=10)
    expected.conv1, expected.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    own = [value for key, value in model.state_dict().items() if not key.startswith("normalize")]
    expected.load_state_dict(dict(zip(expected.state_dict(), own, strict=True)))
    x = images(COLOR, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected.eval()(model.normalize(x)))


def test_pre_activation_block_adds_its_input_or_projects_the_activated_input():
    x = torch.randn(2, 16, 8, 8)
    same, strided = wide_resnet.PreActivation(16, 16, 1, 0.0), wide_resnet.PreActivation(16, 6, 2, 0.0)
    for block in (same, strided):
        nn.init.zeros_(block.body.conv2.weight)
    assert torch.equal(same(x), x)
    relu = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = nn.functional.conv2d(relu.relu(), strided.shortcut.weight, stride=2)
    torch.testing.assert_close(strided(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("AlexNet", {}, [0.5, 0.5]),
        ("VGG_16", {"dropout": 0.1}, [0.1, 0.1]),
        ("WRN_16_8", {"dropout": 0.4}, [0.4] * 6),
    ],
)
def test_dropout(name, options, expected):
    model = catalog.build(name, COLOR, width=0.1, options=options)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == expected


# Every network.


@every_network
def test_forward_and_backward_with_the_normalization_first(name):
    spec = spec_of(name)
    model = catalog.build(name, spec, width=networks.WIDTHS.get(name, 0.125))
    x, y = images(spec), torch.arange(4)
    first, mean, std = next(iter(model.children())), torch.tensor(spec.mean), torch.tensor(spec.std)
    torch.testing.assert_close(first(x), (x - mean[:, None, None]) / std[:, None, None])
    logits = model(x)
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_network
def test_every_layer_is_called_exactly_once(name):
    model = narrow(name)
    called = Counter(node.target for node in layers.trace(model).nodes if node.op == "call_module")
    leaves = {key for key, m in model.named_modules() if not [*m.children()] and not isinstance(m, blocks.Normalize)}
    assert set(called.values()) == {1}
    assert set(called) == leaves


@every_network
def test_folding_batchnorm_keeps_the_logits(name):
    model = narrow(name)
    folded = layers.fold_batchnorm(model)
    x = images(networks.COLOR)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(folded(x), expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)
    left = [*layers.batchnorms(folded)]
    assert (len(left) > 0) == name.startswith("WRN"), "a pre-activation BatchNorm has no layer before it"


@every_network
def test_image_sizes_and_numbers_of_classes(name):
    for height, width, classes in ((28, 28, 10), (32, 64, 100), (224, 224, 1000)):
        spec = ImageSpec(height=height, width=width, num_classes=classes)
        with torch.device("meta"):
            model = catalog.build(name, spec, width=0.125)
        assert model(torch.empty(2, *spec.shape, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("width", [0.25, 2.0])
def test_width_multiplies_channels(width):
    model, narrowed = on_meta("AlexNet_BN", COLOR), catalog.build("AlexNet_BN", COLOR, width=width)
    expected = [layer.weight.shape[0] * width for _, layer in layers.weighted_layers(model)]
    expected[-1] = 10
    assert [layer.weight.shape[0] for _, layer in layers.weighted_layers(narrowed)] == expected


@pytest.mark.parametrize("name", ["AlexNet", "CNN_small", "CNN_large", "LeNet"])
def test_the_signal_does_not_die_out_without_batchnorm(name):
    torch.manual_seed(0)
    model, x = catalog.build(name, spec_of(name)), torch.randn(16, *spec_of(name).shape)
    hidden = model.classifier[:-1](model.features(x))
    assert 0.3 < hidden.std() < 10


def test_same_seed_same_network():
    first, second, other = (catalog.build("LeNet", GRAY, width=0.2, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


# Foreign networks.


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def linear(num_classes, hidden=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))\n"
        "def fixed(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))\n"
        "def pair(num_classes):\n"
        "    return nn.LSTM(32, 4)\n"
        "def nothing(num_classes):\n"
        "    return None\n"
        "def unasked():\n"
        "    return nn.Flatten()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)


@pytest.mark.usefixtures("user_module")
def test_user_function_is_wrapped_and_gets_options():
    model = catalog.build("my_networks:linear", ImageSpec(num_classes=6), options={"hidden": 5})
    x = torch.rand(2, 3, 32, 32)
    assert model(x).shape == (2, 6)
    assert model.network[1].out_features == 5
    torch.testing.assert_close(model(x), model.network((x - 0.5) / 0.25))


# Faults.


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ResNet18", {}, "did you mean 'ResNet_18'"),
        ("torchvision:resnet_18", {}, "did you mean 'resnet18'"),
        ("torchvision:resnet18", {"width": 0.5}, r"torchvision:resnet18: expected width 1\.0, got 0\.5"),
        ("ResNet_18", {"width": 0}, "expected width > 0, got 0"),
        ("ResNet_18", {"width": math.nan}, "expected width > 0, got nan"),
        ("ResNet_18", {"width": math.inf}, "expected width > 0, got inf"),
        ("no_such_module:net", {}, "no_such_module:net is not there: No module named"),
        ("my_networks:net", {}, "my_networks:net is not there: .*no attribute 'net'"),
        ("my_networks:nothing", {}, "my_networks:nothing: expected a torch.nn.Module, got NoneType"),
        ("my_networks:unasked", {}, r"my_networks:unasked must accept unasked\(num_classes=10\)"),
        ("my_networks:fixed", {}, r"my_networks:fixed: expected logits \(2, 10\) for two images, got \(2, 5\)"),
        ("my_networks:pair", {}, r"my_networks:pair fails on images of shape \(3, 32, 32\)"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        catalog.build(name, COLOR, **options)


@every_network
def test_width_that_leaves_no_channels_is_refused(name):
    with pytest.raises(ValueError, match=r"width 0\.001 leaves 0 channels of \d+; use at least 0\.\d"):
        catalog.build(name, spec_of(name), width=0.001)


@pytest.mark.parametrize(("name", "side", "least"), [("VGG_16", 14, 16), ("AlexNet", 8, 12), ("LeNet", 10, 16)])
def test_too_small_images_are_refused_with_the_least_size(name, side, least):
    with pytest.raises(ValueError, match=f"at least {least}x{least}, got {side}x{side}"):
        catalog.build(name, ImageSpec(height=side, width=side), width=0.1)
    catalog.build(name, ImageSpec(height=least, width=least), width=0.1)


# Weights.


@pytest.fixture
def small_model():
    torch.manual_seed(5)
    return catalog.build("SmallCNN", COLOR)


CONTENTS = {
    "own": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "weights": lambda state: {"weights": state},
    "data parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "bare": lambda state: {key: value for key, value in state.items() if not key.startswith("normalize")},
}


@pytest.mark.parametrize("form", CONTENTS)
def test_weights_make_the_round_trip(form, small_model, tmp_path):
    path = tmp_path / "weights.pt"
    files.save_tensors(path, CONTENTS[form](dict(small_model.state_dict())))
    spec = COLOR if form == "bare" else ImageSpec()  # weights bring their normalization, except bare ones
    loaded = catalog.build("SmallCNN", spec, weights=path)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in small_model.state_dict().items())


def test_weights_of_a_bare_foreign_network(tmp_path):
    bare = torchvision_guard.torchvision().models.get_model("squeezenet1_1", num_classes=10)
    files.save_tensors(tmp_path / "weights.pt", dict(bare.state_dict()))
    model = catalog.build("torchvision:squeezenet1_1", ImageSpec(), weights=tmp_path / "weights.pt").eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), bare.eval()((x - 0.5) / 0.25))
    files.save_tensors(tmp_path / "wrapped.pt", dict(model.state_dict()))
    again = catalog.build("torchvision:squeezenet1_1", ImageSpec(), weights=tmp_path / "wrapped.pt").eval()
    assert torch.equal(model(x), again(x))


def test_weights_of_googlenet_with_auxiliary_heads(tmp_path):
    whole = torchvision_guard.torchvision().models.get_model(
        "googlenet", num_classes=10, init_weights=True, aux_logits=True
    )
    files.save_tensors(tmp_path / "weights.pt", dict(whole.state_dict()))
    model = catalog.build("torchvision:googlenet", COLOR, weights=tmp_path / "weights.pt").train()
    assert torch.equal(model.network.fc.weight, whole.fc.weight)
    assert model(images(COLOR)).shape == (4, 10), "plain logits in training too"


NO_TENSOR = {"features.0.conv.bias": "no tensor"}
SHAPES = r"shapes differ \(first features\.0\.conv\.weight: expected \(3, 3, 3, 3\), got \(6, 3, 5, 5\)"


@pytest.mark.parametrize(
    ("name", "spec", "width", "change", "words"),
    [
        ("AlexNet", COLOR, 0.1, {}, rf"6 missing \(.*; \.\.\.\); 8 unexpected \(features\.0\.norm\..*{SHAPES}"),
        ("SmallCNN", ImageSpec(num_classes=100), 1.0, {}, "they are for 10 classes, expected 100"),
        ("SmallCNN", COLOR, 1.0, NO_TENSOR, r"1 missing \(features\.0\.conv\.bias\); nothing"),
    ],
    ids=["another network", "other classes", "no tensor"],
)
def test_weights_that_do_not_fit_are_refused_in_one_error(small_model, tmp_path, name, spec, width, change, words):
    files.save_tensors(tmp_path / "weights.pt", dict(small_model.state_dict()) | change)
    with pytest.raises(ValueError, match=words):
        catalog.build(name, spec, width=width, weights=tmp_path / "weights.pt")


def test_a_stride_before_a_pointwise_convolution_changes_nothing():
    torch.manual_seed(0)
    x, found = torch.randn(3, 8, 7, 6), blocks.pointwise(8, 20, 2)
    expected = nn.functional.conv2d(x, found[1].weight, stride=2)
    torch.testing.assert_close(found(x), expected)
    assert isinstance(blocks.pointwise(16, 20, 2), nn.Conv2d)


def test_narrow_networks_train_on_two_threads_and_an_odd_batch():
    code = (
        "import torch; from rqlib import models; from rqlib.core.vocabulary import ImageSpec\n"
        "for name, width in (('ResNet_18', 0.125), ('WRN_28_10', 0.05)):\n"
        "    model = models.build(name, ImageSpec(), width=width).to(memory_format=torch.channels_last)\n"
        "    for _ in range(3):\n"
        "        x = torch.rand(13, 3, 32, 32).contiguous(memory_format=torch.channels_last)\n"
        "        model(x).square().mean().backward()\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
