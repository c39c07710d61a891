"""Checkpoints come back whole and equal, or not at all; nothing in a file is executed."""

import errno
import os
import pickle
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from rqlib import models
from rqlib.core import files, runtime
from rqlib.core.vocabulary import ImageSpec

SPEC = ImageSpec(channels=1, height=28, width=28, num_classes=7, mean=(0.1,), std=(0.3,))
CLASSES = tuple("abcdefg")


@pytest.fixture(autouse=True)
def on_the_cpu():
    with runtime.using("cpu", "float32"):
        yield


def network(seed: int = 0, width: float = 0.5) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("LeNet", SPEC, width=width)


def assert_same(one: nn.Module, two: nn.Module) -> None:
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert [type(module) for module in one.modules()] == [type(module) for module in two.modules()]


@pytest.fixture
def saved(tmp_path) -> Path:
    kept = {"width": 0.5, "classes": CLASSES, "parameters": {"seed": 3, "dataset": "digits", "seeds": [1, 2]}}
    return models.save(tmp_path / "a.pt", network(), "LeNet", SPEC, **kept, clean_accuracy=numpy.float64(0.97))


def test_round_trip(saved):
    model, info = models.load(saved, expected="LeNet")
    assert_same(model, network())
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(model(x), network().eval()(x))
    assert not model.training
    assert info == {
        "model": "LeNet",
        "spec": SPEC,
        "width": 0.5,
        "options": {},
        "classes": list(CLASSES),
        "parameters": {"seed": 3, "dataset": "digits", "seeds": [1, 2]},
        "metadata": {"clean_accuracy": 0.97},
    }


def test_batchnorm_statistics_and_options_survive(tmp_path):
    torch.manual_seed(0)
    spec = ImageSpec(num_classes=4)
    model = models.build("WRN_16_8", spec, width=0.0625, dropout=0.4).train()
    model(torch.rand(8, 3, 32, 32))
    path = models.save(tmp_path / "a.pt", model, "WRN_16_8", spec, width=0.0625, options={"dropout": 0.4})
    loaded, _ = models.load(path)
    assert_same(loaded, model)
    assert any(isinstance(module, nn.Dropout) and module.p == 0.4 for module in loaded.modules())


def test_saving_and_loading_do_not_touch_the_random_numbers(saved, tmp_path):
    model = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models.save(tmp_path / "b.pt", model, "LeNet", SPEC, width=0.5)
    models.load(saved)
    assert torch.equal(torch.rand(3), expected)


def test_no_file_says_how_to_make_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"expected a checkpoint at .*none.pt, found no file; make it: run notebooks/01"
    ):
        models.load(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="make it: snakemake train$"):
        models.load(tmp_path / "none.pt", remedy="snakemake train")


@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_a_truncated_file(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{saved.name}: not a whole checkpoint"):
        models.load(saved)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_code_in_a_file_is_not_executed(saved, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content = files.load_tensors(saved) | {"classes": Malicious()}
    if kind == "pickle":
        saved.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, saved)
    with pytest.raises(ValueError, match="not a whole checkpoint .*nothing of it was executed"):
        models.load(saved)
    assert not (tmp_path / "executed").exists()


def test_a_module_named_by_a_file_is_not_imported(saved, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path(__file__).with_name('executed').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    files.save_tensors(saved, files.load_tensors(saved) | {"model": "trap:network"})
    with pytest.raises(ValueError, match="'trap:network' the module would be imported; if you trust it, say expected="):
        models.load(saved)
    with pytest.raises(ValueError, match="expected a checkpoint of 'LeNet', got one of 'trap:network'"):
        models.load(saved, expected="LeNet")
    assert not (tmp_path / "executed").exists()


def test_a_module_that_is_expected_is_imported(tmp_path, monkeypatch):
    network = "def network(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))"
    (tmp_path / "trusted_network.py").write_text(f"from torch import nn\n{network}")
    monkeypatch.syspath_prepend(tmp_path)
    model = models.build("trusted_network:network", SPEC)
    path = models.save(tmp_path / "a.pt", model, "trusted_network:network", SPEC)
    loaded, _ = models.load(path, expected="trusted_network:network")
    assert_same(loaded, model)


def test_a_foreign_state_dict(tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"expected a checkpoint with model, spec, .*models.build\(name, spec, weights=path\)"
    ):
        models.load(tmp_path / "a.pt")


def test_a_checkpoint_of_another_network(saved):
    with pytest.raises(ValueError, match="expected a checkpoint of 'SmallCNN', got one of 'LeNet'"):
        models.load(saved, expected="SmallCNN")


@pytest.mark.parametrize(
    "change",
    [{"width": 1.0}, {"model": "SmallCNN"}, {"state": {}}, {"spec": {"channels": 1}}, {"options": {"depth": 3}}],
    ids=lambda change: next(iter(change)),
)
def test_weights_that_do_not_fit(saved, change):
    files.save_tensors(saved, files.load_tensors(saved) | change)
    with pytest.raises(ValueError, match=rf"{saved.name}: its weights do not make a '\w+': "):
        models.load(saved)


def test_parametrized_weights_are_refused(tmp_path):
    model = network()
    first = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    parametrize.register_parametrization(model.get_submodule(first), "weight", nn.Identity())
    with pytest.raises(ValueError, match=f"found parametrized layers {first}; bake them first"):
        models.save(tmp_path / "a.pt", model, "LeNet", SPEC, width=0.5)
    assert not (tmp_path / "a.pt").exists()


def test_exchanged_layers_are_refused(tmp_path):
    model = network()
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.ReLU))
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Tanh())
    with pytest.raises(ValueError, match=f"found it changed .*{name}: Tanh"):
        models.save(tmp_path / "a.pt", model, "LeNet", SPEC, width=0.5)


def test_another_width_is_refused_when_saved(tmp_path):
    with pytest.raises(ValueError, match="expected the network that models.build makes, found it changed"):
        models.save(tmp_path / "a.pt", network(), "LeNet", SPEC, width=1.0)


def test_a_full_disk_leaves_the_old_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()

    def full(content, path):
        Path(path).write_bytes(before[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        models.save(saved, network(seed=1), "LeNet", SPEC, width=0.5)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
