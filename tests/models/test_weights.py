"""State dicts as they lie on disks: under other names, with prefixes, in half precision, with counters and heads."""

import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from rqlib import models
from rqlib.core.vocabulary import ImageSpec
from rqlib.models import weights

SPEC = ImageSpec(num_classes=4)
NAME = "tests.models.test_weights:network"


def network(num_classes: int) -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, num_classes))


def inside(num_classes: int) -> nn.Module:
    """A network whose own names begin with ``model.``."""
    outer = nn.Module()
    outer.model = network(num_classes)
    outer.forward = outer.model.forward
    return outer


def weight_normed(num_classes: int) -> nn.Module:
    made = network(num_classes)
    with pytest.warns(FutureWarning):
        made[0] = nn.utils.weight_norm(made[0])
    return made


def state(make=network) -> dict:
    torch.manual_seed(3)
    made = make(4)
    if isinstance(made, nn.Sequential):
        made[1].running_mean.normal_()
    return dict(made.state_dict())


def prefixed(*prefixes):
    return lambda found: {"".join(prefixes) + key: value for key, value in found.items()}


def without_counter(found):
    return {key: value for key, value in found.items() if not key.endswith("num_batches_tracked")}


CONTENTS = {
    "bare": lambda found: found,
    **{f"under {name}": lambda found, name=name: {name: found, "epoch": 3} for name in weights.CONTAINERS},
    "nested": lambda found: {"state": {"model": prefixed("module.")(found)}, "optimizer": {"lr": 0.1}},
    **{prefix: prefixed(prefix) for prefix in weights.PREFIXES},
    "compiled, parallel": prefixed("_orig_mod.", "module."),
    "three": prefixed("module.", "model.", "backbone."),
    "half": lambda found: {key: value.half() if value.is_floating_point() else value for key, value in found.items()},
    "float64": lambda found: {
        key: value.double() if value.is_floating_point() else value for key, value in found.items()
    },
    "old": without_counter,
    "counted": lambda found: (
        prefixed("model.")(found | {"0.total_ops": torch.zeros(1)}) | {"total_params": torch.ones(1)}
    ),
    "averaged": lambda found: {"n_averaged": torch.tensor(3), **prefixed("module.")(found)},
    "heads": lambda found: prefixed("net.")(
        found | {"aux1.fc.weight": torch.ones(2), "head.auxiliary.bias": torch.ones(1)}
    ),
}


@pytest.mark.parametrize("form", CONTENTS)
def test_weights_are_found(form, tmp_path):
    expected = state()
    torch.save(CONTENTS[form](expected), tmp_path / "w.pt")
    found = models.build(NAME, SPEC, weights=tmp_path / "w.pt").network.state_dict()
    assert all(value.dtype == expected[key].dtype for key, value in found.items())
    for key, value in without_counter(found).items():
        torch.testing.assert_close(value, expected[key], atol=2e-3 if form == "half" else 0, rtol=0)


@pytest.mark.parametrize("content", [lambda found: found, prefixed("module.")], ids=["bare", "parallel"])
def test_safetensors(content, tmp_path):
    safetensors.torch.save_file(content(state()), tmp_path / "w.safetensors")
    found = models.build(NAME, SPEC, weights=tmp_path / "w.safetensors").network.state_dict()
    assert all(torch.equal(value, state()[key]) for key, value in found.items())


def test_a_prefix_that_is_the_networks_own_stays(tmp_path):
    expected = state(inside)
    assert all(key.startswith("model.") for key in expected)
    for content in (expected, prefixed("module.")(expected)):
        torch.save(content, tmp_path / "w.pt")
        found = models.build("tests.models.test_weights:inside", SPEC, weights=tmp_path / "w.pt").network.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_weights_that_hooks_compute(tmp_path):
    """The state dict has the names of before; a checkpoint has those of after."""
    name, expected = "tests.models.test_weights:weight_normed", state(weight_normed)
    assert "0.weight_g" in expected
    torch.save(expected, tmp_path / "w.pt")
    made = models.build(name, SPEC, weights=tmp_path / "w.pt").eval()
    direction = expected["0.weight_v"]
    norm = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(made.network[0].weight, expected["0.weight_g"] * direction / norm)
    models.save(tmp_path / "c.pt", made, name, SPEC)
    again, _ = models.load(tmp_path / "c.pt", expected=name)
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(again(x), made(x))
    torch.testing.assert_close(models.build(name, SPEC, weights=tmp_path / "c.pt").eval()(x), made(x))


def renamed(found):
    return {key.replace("5.weight", "5.wieght"): value for key, value in found.items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (renamed, r"1 missing \(network.5.weight, nearest network.5.wieght\); 1 unexpected .*; nothing was loaded"),
        (lambda found: found | {"more": torch.ones(1)}, r"fit this network: 1 unexpected \(network.more\); nothing"),
        (lambda found: found | {"0.bias": torch.ones(7)}, r"1 shapes differ \(first network.0.bias: expected \(5,\)"),
        (lambda found: {"model.0.weight": found["0.weight"], "ema": found["0.bias"]}, "1 unexpected|2 unexpected"),
        (lambda found: {"epoch": 3, "best": 0.9}, "expected a state dict, or one under .*; found best, epoch. Save it"),
        (lambda found: {}, "expected a state dict, .*; found nothing"),
        (lambda found: found["0.weight"], "expected a dict of tensors, got Tensor"),
        (lambda found: network(4), r"nothing of it was executed. Save weights as a plain .*model.state_dict\(\), path"),
    ],
)
def test_what_does_not_fit(content, words, tmp_path):
    torch.save(content(state()), tmp_path / "w.pt")
    model = models.build(NAME, SPEC)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        weights.load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_files_that_are_none(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="w.safetensors: not a whole file of safetensors"):
        models.build(NAME, SPEC, weights=tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match="a file of weights at .*none.safetensors, found no file"):
        models.build(NAME, SPEC, weights=tmp_path / "none.safetensors")
    assert str(tmp_path) not in sys.path
