"""Checkpoints come back whole and equal, or not at all; nothing in a file is executed."""

from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from rqlib import models
from rqlib.core import files
from rqlib.core.vocabulary import ImageSpec

SPEC = ImageSpec(channels=1, height=28, width=28, num_classes=7, mean=(0.1,), std=(0.3,))
CLASSES = tuple("abcdefg")


def network(seed: int = 0, width: float = 0.5) -> nn.Module:
    return models.build("LeNet", SPEC, width=width, seed=seed)


def assert_same(one: nn.Module, two: nn.Module) -> None:
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert [type(module) for module in one.modules()] == [type(module) for module in two.modules()]


@pytest.fixture
def saved(tmp_path) -> Path:
    kept = {"width": 0.5, "classes": CLASSES, "parameters": {"seed": 3, "dataset": "digits", "seeds": [1, 2]}}
    return models.save(tmp_path / "a.pt", network(), "LeNet", SPEC, **kept, clean_accuracy=numpy.float64(0.97))


def test_round_trip_leaves_the_random_numbers_alone(saved):
    state = torch.get_rng_state()
    model, info = models.load(saved, expected="LeNet")
    assert_same(model, network())
    assert torch.equal(torch.get_rng_state(), state)
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
        "changes": {},
        "metadata": {"clean_accuracy": 0.97},
    }


def test_batchnorm_statistics_and_options_survive(tmp_path):
    torch.manual_seed(0)
    spec = ImageSpec(num_classes=4)
    model = models.build("WRN_16_8", spec, width=0.0625, options={"dropout": 0.4}).train()
    model(torch.rand(8, 3, 32, 32))
    path = models.save(tmp_path / "a.pt", model, "WRN_16_8", spec, width=0.0625, options={"dropout": 0.4})
    loaded, _ = models.load(path)
    assert_same(loaded, model)
    assert any(isinstance(module, nn.Dropout) and module.p == 0.4 for module in loaded.modules())


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


def replaced(**change):
    """Replace entries of a checkpoint."""
    return lambda path: files.save_tensors(path, files.load_tensors(path) | change)


NO_FIT = r"a.pt: its weights do not make a '\w+': "


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (Path.unlink, {}, FileNotFoundError, "a checkpoint at .*a.pt, found no file; make it: run notebooks/01"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), {}, ValueError, "a.pt is damaged: expected the bytes"),
        (
            lambda path: torch.save(network().state_dict(), path),
            {},
            ValueError,
            r"expected a checkpoint with model, spec, .*models.build\(name, spec, weights=path\)",
        ),
        (lambda path: None, {"expected": "SmallCNN"}, ValueError, "a checkpoint of 'SmallCNN', got one of 'LeNet'"),
        (replaced(width=1.0), {}, ValueError, NO_FIT),
        (replaced(model="SmallCNN"), {}, ValueError, NO_FIT),
        (replaced(state={}), {}, ValueError, NO_FIT),
        (replaced(spec={"channels": 1}), {}, ValueError, NO_FIT),
        (replaced(options={"depth": 3}), {}, ValueError, NO_FIT),
    ],
)
def test_what_is_no_checkpoint_of_this_network_is_refused(saved, change, options, error, words):
    change(saved)
    with pytest.raises(error, match=words):
        models.load(saved, **options)


def parametrized() -> nn.Module:
    model = network()
    parametrize.register_parametrization(model.features[0], "weight", nn.Identity())
    return model


def exchanged() -> nn.Module:
    model = network()
    model.classifier.relu1 = nn.Tanh()
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (parametrized, "found parametrized layers features.0; bake them first"),
        (exchanged, "found it changed .*classifier.relu1: Tanh"),
        (lambda: network(width=1.0), "expected the network that models.build makes, found it changed"),
    ],
)
def test_what_cannot_be_loaded_again_is_not_saved(tmp_path, make, words):
    with pytest.raises(ValueError, match=words):
        models.save(tmp_path / "a.pt", make(), "LeNet", SPEC, width=0.5)
    assert not (tmp_path / "a.pt").exists()
