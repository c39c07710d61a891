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

COLOR = ImageSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
GRAY = ImageSpec(1, 28, 28, 10, (0.13,), (0.31,))
NAMES = [*catalog.MODELS]
NARROW = {"SmallCNN": 1.0, "LeNet": 0.5, "CNN_small": 0.5, "WRN_28_10": 0.05}


def spec_of(name):
    return GRAY if name == "LeNet" else COLOR


def on_meta(name, spec):
    with torch.device("meta"):
        return catalog.build(name, spec)


@functools.cache
def narrow(name):
    """A narrow network in eval mode, with BatchNorm statistics and weights as if it had been trained."""
    torch.manual_seed(0)
    model = catalog.build(name, spec_of(name), width=NARROW.get(name, 0.125))
    for _, norm in layers.batchnorms(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


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
    "CNN_small": 214_760,
    "CNN_large": 2_465_632,
    "LeNet": 430_500,
}


def printed(number, figure):
    """The number in the figure's unit and with as many digits."""
    unit = {"M": 1e6, "G": 1e9}[figure[-1]]
    digits = len(figure[:-1].partition(".")[2])
    return f"{number / unit:.{digits}f}{figure[-1]}"


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


def test_resnet_34_has_the_weights_of_the_source():
    assert printed(cost.weight_count(on_meta("ResNet_34", COLOR)), "21.27M") == "21.27M"


@pytest.mark.parametrize(("name", "flat"), [("AlexNet", 2304), ("VGG_16", 512), ("SmallCNN", 576)])
def test_size_of_the_flat_features(name, flat):
    assert on_meta(name, COLOR).classifier.linear1.in_features == flat


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
        ("VGG_16", {}, [0.5, 0.5]),
        ("VGG_16", {"dropout": 0.1}, [0.1, 0.1]),
        ("WRN_16_8", {"dropout": 0.4}, [0.4] * 6),
    ],
)
def test_dropout(name, options, expected):
    model = catalog.build(name, COLOR, width=0.1, **options)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == expected


def test_lenet_has_no_relu_after_convolutions():
    relus = [name for name, module in narrow("LeNet").named_modules() if isinstance(module, nn.ReLU)]
    assert relus == ["classifier.relu1"]


# Every network.


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name):
    spec = spec_of(name)
    model = catalog.build(name, spec, width=NARROW.get(name, 0.125))
    x, y = images(spec), torch.arange(4)
    logits = model(x)
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_normalization_is_the_first_layer(name):
    model, spec = narrow(name), spec_of(name)
    first = next(iter(model.children()))
    assert isinstance(first, blocks.Normalize)
    x, mean, std = images(spec), torch.tensor(spec.mean), torch.tensor(spec.std)
    torch.testing.assert_close(first(x), (x - mean[:, None, None]) / std[:, None, None])


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_called_exactly_once(name):
    model = narrow(name)
    called = Counter(node.target for node in layers.trace(model).nodes if node.op == "call_module")
    leaves = {key for key, m in model.named_modules() if not [*m.children()] and not isinstance(m, blocks.Normalize)}
    assert set(called.values()) == {1}
    assert set(called) == leaves


@pytest.mark.parametrize("name", NAMES)
def test_folding_batchnorm_keeps_the_logits(name):
    model = narrow(name)
    folded = layers.fold_batchnorm(model)
    x = images(spec_of(name))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(folded(x), expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)
    left = [*layers.batchnorms(folded)]
    assert (len(left) > 0) == name.startswith("WRN"), "a pre-activation BatchNorm has no layer before it"


@pytest.mark.parametrize("name", PARAMS_AND_MACS)
@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_number_of_classes(name, num_classes):
    spec = ImageSpec(num_classes=num_classes)
    with torch.device("meta"):
        model = catalog.build(name, spec, width=0.125)
    assert model(torch.empty(2, *spec.shape, device="meta")).shape == (2, num_classes)


@pytest.mark.parametrize("side", [28, 64, 224])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("VGG_16", "VGG_19", "ResNet_152")])
def test_image_sizes(name, side):
    spec = ImageSpec(height=side, width=side)
    with torch.device("meta"):
        model = catalog.build(name, spec, width=0.125)
    assert model(torch.empty(2, *spec.shape, device="meta")).shape == (2, 10)


def test_lenet_takes_mnist_padded_to_32_and_images_need_not_be_square():
    for spec in (ImageSpec(1, 32, 32, 10, (0.1,), (0.3,)), ImageSpec(3, 32, 48)):
        assert catalog.build("LeNet", spec, width=0.2)(images(spec)).shape == (4, 10)


@pytest.mark.parametrize(
    ("name", "side", "least"), [("VGG_16", 16, 32), ("VGG_19", 28, 32), ("AlexNet", 8, 12), ("LeNet", 10, 16)]
)
def test_too_small_images_are_refused_with_the_least_size(name, side, least):
    with pytest.raises(ValueError, match=f"at least {least}x{least}, got {side}x{side}"):
        catalog.build(name, ImageSpec(height=side, width=side), width=0.1)
    catalog.build(name, ImageSpec(height=least, width=least), width=0.1)


@pytest.mark.parametrize("width", [0.25, 0.5, 2.0])
def test_width_multiplies_channels(width):
    model, narrowed = on_meta("AlexNet_BN", COLOR), catalog.build("AlexNet_BN", COLOR, width=width)
    expected = [layer.weight.shape[0] * width for _, layer in layers.weighted_layers(model)]
    expected[-1] = 10
    assert [layer.weight.shape[0] for _, layer in layers.weighted_layers(narrowed)] == expected


@pytest.mark.parametrize("name", NAMES)
def test_width_that_leaves_no_channels_is_refused(name):
    with pytest.raises(ValueError, match=r"width 0\.001 leaves 0 channels of \d+; use at least 0\.\d"):
        catalog.build(name, spec_of(name), width=0.001)


@pytest.mark.parametrize("width", [0, -1.0, math.nan, math.inf])
def test_width_must_be_a_positive_number(width):
    with pytest.raises(ValueError, match="expected width > 0, got"):
        catalog.build("ResNet_18", COLOR, width=width)


@pytest.mark.parametrize("name", ["AlexNet", "CNN_small", "CNN_large", "LeNet"])
def test_the_signal_does_not_die_out_without_batchnorm(name):
    torch.manual_seed(0)
    model, x = catalog.build(name, spec_of(name)), torch.randn(16, *spec_of(name).shape)
    hidden = model.classifier[:-1](model.features(x))
    assert 0.3 < hidden.std() < 10


def test_same_seed_same_network():
    first, second = (_seeded("MobileNetV2") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def _seeded(name):
    torch.manual_seed(3)
    return catalog.build(name, COLOR, width=0.125).state_dict()


# Foreign networks.


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_networks_are_wrapped(name):
    model = catalog.build(f"torchvision:{name}", ImageSpec(num_classes=7)).eval()
    x = torch.rand(2, 3, 32, 32)
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model(x), model.network((x - 0.5) / 0.25))
    with torch.no_grad():
        torch.testing.assert_close(layers.fold_batchnorm(model)(x), model(x), atol=1e-4, rtol=1e-4)


def test_googlenet_gives_plain_logits_in_training_too():
    model = catalog.build("torchvision:googlenet", COLOR).train()
    assert model(images(COLOR)).shape == (4, 10)


def test_foreign_networks_have_one_width():
    with pytest.raises(ValueError, match=r"torchvision:resnet18: expected width 1\.0, got 0\.5"):
        catalog.build("torchvision:resnet18", COLOR, width=0.5)


def test_torchvision_network_that_needs_other_images():
    with pytest.raises(ValueError, match=r"torchvision:vit_b_16 fails on images of shape \(3, 32, 32\): Wrong image"):
        catalog.build("torchvision:vit_b_16", COLOR)


@pytest.mark.parametrize(
    ("name", "near"),
    [("ResNet18", "ResNet_18"), ("alexnet_bn", "AlexNet_BN"), ("torchvision:resnet_18", "resnet18")],
)
def test_unknown_names_are_answered_with_a_near_one(name, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        catalog.build(name, COLOR)


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


@pytest.mark.usefixtures("user_module")
def test_user_function_is_wrapped_and_gets_options():
    model = catalog.build("my_networks:linear", ImageSpec(num_classes=6), hidden=5)
    x = torch.rand(2, 3, 32, 32)
    assert model(x).shape == (2, 6)
    assert model.network[1].out_features == 5
    torch.testing.assert_close(model(x), model.network((x - 0.5) / 0.25))


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:net", "no_such_module:net is not there: No module named"),
        ("my_networks:net", "my_networks:net is not there: .*no attribute 'net'"),
        ("my_networks:nothing", "my_networks:nothing: expected a torch.nn.Module, got NoneType"),
        ("my_networks:unasked", r"my_networks:unasked must accept unasked\(num_classes=10\)"),
        ("my_networks:fixed", r"my_networks:fixed: expected logits \(2, 10\) for two images, got \(2, 5\)"),
        ("my_networks:pair", r"my_networks:pair fails on images of shape \(3, 32, 32\)"),
    ],
)
def test_wrong_user_functions_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        catalog.build(name, COLOR)


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
    loaded = catalog.build("SmallCNN", COLOR, weights=path)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in small_model.state_dict().items())


def test_weights_bring_their_normalization(small_model, tmp_path):
    files.save_tensors(tmp_path / "weights.pt", dict(small_model.state_dict()))
    loaded = catalog.build("SmallCNN", ImageSpec(), weights=tmp_path / "weights.pt").eval()
    assert torch.equal(loaded(images(COLOR)), small_model.eval()(images(COLOR)))


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
    model = catalog.build("torchvision:googlenet", COLOR, weights=tmp_path / "weights.pt")
    assert torch.equal(model.network.fc.weight, whole.fc.weight)


def test_weights_of_another_network_are_refused_in_one_error(small_model, tmp_path):
    files.save_tensors(tmp_path / "weights.pt", dict(small_model.state_dict()))
    with pytest.raises(ValueError, match=r"6 missing \(.*, \.\.\.\); 10 unexpected \(features\.0\.norm\.") as caught:
        catalog.build("AlexNet", COLOR, width=0.1, weights=tmp_path / "weights.pt")
    assert "shapes differ (first features.0.conv.weight: expected (3, 3, 3, 3), got (6, 3, 5, 5))" in str(caught.value)


def test_weights_for_other_classes_say_so(small_model, tmp_path):
    files.save_tensors(tmp_path / "weights.pt", dict(small_model.state_dict()))
    with pytest.raises(ValueError, match="does not fit this network: they are for 10 classes, expected 100"):
        catalog.build("SmallCNN", ImageSpec(num_classes=100), weights=tmp_path / "weights.pt")


def test_weights_that_are_no_tensors_are_refused(small_model, tmp_path):
    state = dict(small_model.state_dict()) | {"features.0.conv.bias": "no tensor"}
    files.save_tensors(tmp_path / "weights.pt", state)
    with pytest.raises(ValueError, match=r"1 shapes differ \(first features\.0\.conv\.bias: expected \(6,\), got \(\)"):
        catalog.build("SmallCNN", COLOR, weights=tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        catalog.build("SmallCNN", COLOR, weights=tmp_path / "absent.pt")


def test_scaled_rounds():
    assert [blocks.scaled(c, 0.25) for c in (64, 6, 10, 3)] == [16, 2, 2, 1]


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
