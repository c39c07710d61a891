"""Every notebook opens its network in one way: a checkpoint, the latest run, or a network from elsewhere by name."""

import dataclasses
import sys

import pandas
import pytest
import torch

from rqlib import data, models, workbook
from rqlib.core import files
from rqlib.core.vocabulary import ImageSpec
from rqlib.models import conventions
from rqlib.workbook.parameters import ParameterError
from tests.workbook.runs import start

MINE = """
from torch import nn

def net(num_classes, width=4):
    layers = [nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
"""

pytestmark = pytest.mark.filterwarnings("ignore::rqlib.workbook.chance.AtChanceWarning")  # random weights


@pytest.fixture(scope="module")
def images():
    return data.load("digits")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a module of the user's, which lies nowhere else."""
    monkeypatch.delitem(sys.modules, "mine_alone", raising=False)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/mine_alone.py").write_text(MINE)
    return tmp_path / "theirs"


def trained(images, seed: int, objective: str = "natural"):
    """A finished run of 01_train that leaves a checkpoint."""
    run = start("01_train", model="SmallCNN", objective=objective, seed=seed)
    made = models.build("SmallCNN", images.spec, seed=seed)
    path = run.checkpoint(made, "SmallCNN", images.spec, classes=images.classes)
    run.finish()
    return made, path


def weights(network):
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


def test_a_checkpoint_or_the_latest_finished_run(images):
    first, path = trained(images, 0)
    second, _ = trained(images, 1, objective="trades")
    opened, about = workbook.network(path, images)
    assert torch.equal(weights(opened), weights(first))
    assert (about.model, about.width, about.path) == ("SmallCNN", 1.0, path)
    assert about.title == f"SmallCNN on {images.title}"
    assert about.trained("seed", "recipe") == {"seed": 0, "recipe": None}
    latest, about = workbook.network("", images)
    assert torch.equal(weights(latest), weights(second))
    assert about.objective == "trades"
    assert about.title == f"SmallCNN, trades, on {images.title}"
    assert about.title == workbook.title_of("SmallCNN", "trades", images.title)


def test_a_network_by_name(images):
    opened, about = workbook.network("LeNet", images, options=["width=0.5"])
    assert opened(torch.rand(2, *images.spec.shape)).shape == (2, 10)
    assert (about.model, about.width, about.path, about.parameters) == ("LeNet", 0.5, None, {})
    assert about.objective == "natural"
    assert about.history is None
    assert not opened.training
    again, _ = workbook.network("LeNet", images, options=["width=0.5"], seed=3)
    assert torch.equal(weights(again), weights(models.build("LeNet", images.spec, width=0.5, seed=3)))


def test_weights_of_a_network_by_name(images, tmp_path):
    made = models.build("torchvision:squeezenet1_1", images.spec, seed=0)
    torch.save(made.network.state_dict(), tmp_path / "bare.pt")
    opened, about = workbook.network("torchvision:squeezenet1_1", images, weights=tmp_path / "bare.pt")
    assert torch.equal(weights(opened), weights(made))
    assert about.pixels == "imagenet"
    assert about.score.images == 144
    again = models.build(about.model, about.spec, width=about.width, options=about.options)
    assert torch.equal(again.normalize.mean, opened.normalize.mean)


def test_the_module_lies_beside_the_weights_or_in_the_working_folder(images, mine, monkeypatch):
    before = list(sys.path)
    with pytest.raises(
        ValueError, match="mine_alone:net is not there: No module named 'mine_alone'; .* of a file in /"
    ):
        workbook.network("mine_alone:net", images)
    made = models.build("mine_alone:net", images.spec, folder=mine, options={"width": 8})
    torch.save(made.network.state_dict(), mine / "weights.pt")
    sys.modules.pop("mine_alone")
    opened, about = workbook.network("mine_alone:net", images, weights=mine / "weights.pt", options=["width=8"])
    assert torch.equal(weights(opened), weights(made))
    assert (about.width, about.options) == (1.0, {"width": 8})
    sys.modules.pop("mine_alone")
    monkeypatch.chdir(mine)
    assert workbook.network("mine_alone:net", images)[1].options == {}
    assert sys.path == before


def test_another_module_of_the_same_name_is_not_taken_for_it(images, mine, tmp_path):
    models.build("mine_alone:net", images.spec, folder=mine)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine_alone.py").write_text(MINE)
    with pytest.raises(
        ValueError, match="other/mine_alone.py has the name of .*theirs/mine_alone.py, which is imported"
    ):
        models.build("mine_alone:net", images.spec, folder=tmp_path / "other")


def test_the_checkpoint_of_a_network_of_the_users_own(images, mine):
    spec = conventions.with_pixels(images.spec, "0..255")
    made = models.build("mine_alone:net", spec, folder=mine, options={"width": 8}, seed=1)
    run = start("01_train", model="mine_alone:net", seed=1)
    kept = {"options": {"width": 8}, "classes": images.classes}
    path = run.checkpoint(made, "mine_alone:net", spec, **kept)
    run.save(history=pandas.DataFrame({"loss": [2.0]}))
    with pytest.raises(ValueError, match=f"in a notebook network='mine_alone:net', weights='{path}'"):
        workbook.network(path, images)
    opened, about = workbook.network("mine_alone:net", images, weights=path)
    assert torch.equal(weights(opened), weights(made))
    assert (about.pixels, about.options, about.path) == ("0..255", {"width": 8}, path)
    assert about.trained("seed") == {"seed": 1}
    assert about.history.loss.tolist() == [2.0]
    opened, about = workbook.network("mine_alone:net", images, weights=path, pixels="0..1")
    assert about.pixels == "0..1"
    assert opened.normalize.std.flatten().tolist() == [1.0] * 3


def test_pixels_of_a_checkpoint_can_be_said_otherwise(images):
    _, path = trained(images, 0)
    opened, about = workbook.network(path, images, pixels="imagenet")
    assert about.pixels == "imagenet"
    torch.testing.assert_close(opened.normalize.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    assert workbook.network(path, images)[1].pixels == "normalized"


def test_without_a_finished_run_the_command_is_named(images):
    with pytest.raises(FileNotFoundError, match="make it: python -m rqlib.workbook.run notebooks/01_train.ipynb"):
        workbook.network("", images)


def test_the_other_networks(images):
    paths = [trained(images, seed)[1] for seed in (0, 1, 2)]
    _, about = workbook.network(paths[0], images)
    assert list(workbook.others(about, images)) == ["1. SmallCNN, natural", "2. SmallCNN, natural"]
    assert list(workbook.others(about, images, [str(paths[0])])) == ["1. SmallCNN, natural"]


def test_other_networks_whose_module_would_be_imported_are_left_out(images, mine):
    _, path = trained(images, 0)
    spec = images.spec
    run = start("01_train", model="mine_alone:net", seed=1)
    run.checkpoint(models.build("mine_alone:net", spec, folder=mine), "mine_alone:net", spec)
    run.finish()
    _, about = workbook.network(path, images)
    with pytest.warns(UserWarning, match="not compared with .*mine_alone.*: to load 'mine_alone:net' the module would"):
        assert workbook.others(about, images) == {}
    _, own = workbook.network("mine_alone:net", images, options=["width=8"])
    assert list(workbook.others(own, images)) == ["1. SmallCNN, natural", "2. mine_alone:net, natural"]


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ("ResNet18", {}, ValueError, "unknown network 'ResNet18' .did you mean 'ResNet_18'.*the path of a checkpoint"),
        ("no/such.pt", {}, FileNotFoundError, "expected a checkpoint at no/such.pt, found no file; make it"),
        (
            "{own}",
            {"weights": "x.pt"},
            ValueError,
            "a checkpoint brings its own weights and options, got weights='x.pt'",
        ),
        ("{own}", {"options": ["width=2"]}, ValueError, "its own weights and options, got options={'width': 2}"),
        ("{bare}", {}, ValueError, "found no model, .*in a notebook by network=NAME, weights="),
        ("{other}", {}, ValueError, r"expected images \(3, 28, 28\) in 7 classes, .*, got \(3, 32, 32\) in 10"),
        ("LeNet", {"weights": "{own}"}, ValueError, "expected weights of LeNet, got a checkpoint of SmallCNN"),
        (
            "LeNet",
            {"options": ["width"]},
            ParameterError,
            "options: expected NAME=VALUE such as width=0.25, got 'width'",
        ),
        ("LeNet", {"options": ["width=1", "width=2"]}, ParameterError, "options: 'width' is given twice"),
        ("LeNet", {"options": ["width=010"]}, ParameterError, "options: width=010: expected a plain number, got 010"),
        ("LeNet", {"options": ["width=wide"]}, ValueError, "expected width > 0, got 'wide'"),
        ("LeNet", {"options": ["depth=3"]}, ValueError, "LeNet must accept LeNet.depth=3.: .*'depth'"),
        (
            "torchvision:resnet18",
            {"options": ["depth=3"]},
            ValueError,
            "torchvision:resnet18: .*depth=3.* fails: .*'depth'",
        ),
        ("tests.workbook.test_opening:single", {}, ValueError, r"K >= 2 classes, got one logit z per image; put .*cat"),
    ],
)
def test_what_cannot_be_opened(images, tmp_path, source, options, error, words):
    paths = {"own": trained(images, 0)[1], "bare": tmp_path / "bare.pt", "other": tmp_path / "other.pt"}
    files.save_tensors(paths["bare"], dict(models.build("SmallCNN", images.spec).state_dict()))
    spec = ImageSpec(3, 28, 28, 7)
    models.save(paths["other"], models.build("SmallCNN", spec), "SmallCNN", spec)
    options = {name: value.format(**paths) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(error, match=words):
        workbook.network(source.format(**paths), images, **options)


@pytest.mark.parametrize("classes", [[f"thing {number}" for number in range(10)], list("1023456789")])
@pytest.mark.parametrize(
    "meet",
    [
        workbook.network,
        lambda path, images: workbook.network("SmallCNN", images, weights=path),
        lambda path, images: workbook.network("SmallCNN", images, weights=path, seed=0, width=1.0),
        lambda path, images: workbook.network("", images),
        lambda path, images: workbook.others(workbook.network("SmallCNN", images)[1], images, [str(path)]),
        lambda path, images: workbook.defended(["*"], images),
    ],
    ids=["checkpoint", "weights", "as in 01_train", "latest run", "others", "study"],
)
def test_a_network_meets_only_images_of_its_own_classes(images, meet, classes):
    _, path = trained(images, 0)
    meet(path, images)
    words = f"checkpoint.pt: expected images of the classes .*, got '{classes[0]}' for '0', '{classes[1]}' for '1'"
    with pytest.raises(ValueError, match=words):
        meet(path, dataclasses.replace(images, classes=tuple(classes)))


def test_other_networks_that_nobody_named_are_left_out_if_they_do_not_fit(images):
    _, about = workbook.network(trained(images, 0)[1], images)
    _, damaged = trained(images, 1)
    trained(dataclasses.replace(images, classes=tuple("abcdefghij")), 2)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="not compared with: .*pt( is damaged|: expected images of the cl)") as said:
        assert workbook.others(about, images) == {}
    assert len(said) == 2


def test_without_images_a_name_is_needed(images):
    with pytest.raises(ValueError, match="got an empty one and no images that a run belongs to; also possible"):
        workbook.network("", images.spec)


def single(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 1))
