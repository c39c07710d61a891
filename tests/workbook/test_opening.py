"""Every notebook opens its network in one way: a checkpoint, the latest finished run, or a network by name."""

import pytest
import torch

from rqlib import data, models, workbook
from tests.workbook.runs import start


@pytest.fixture(scope="module")
def images():
    return data.load("digits")


def trained(images, seed: int, objective: str = "natural"):
    """A finished run of 01_train that leaves a checkpoint."""
    run = start("01_train", model="SmallCNN", objective=objective, seed=seed)
    made = models.build("SmallCNN", images.spec, seed=seed)
    path = run.checkpoint(made, "SmallCNN", images.spec)
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


def test_a_network_by_name(images):
    opened, about = workbook.network("", images, model="LeNet")
    assert opened(torch.rand(2, *images.spec.shape)).shape == (2, 10)
    assert (about.model, about.path, about.parameters) == ("LeNet", None, {})
    assert about.objective == "natural"


def test_without_a_finished_run_the_command_is_named(images):
    with pytest.raises(FileNotFoundError, match="make it: python -m rqlib.workbook.run notebooks/01_train.ipynb"):
        workbook.network("", images)


def test_the_other_networks(images):
    paths = [trained(images, seed)[1] for seed in (0, 1, 2)]
    _, about = workbook.network(paths[0], images)
    assert list(workbook.others(about, images)) == ["1. SmallCNN, natural", "2. SmallCNN, natural"]
    assert list(workbook.others(about, images, [str(paths[0])])) == ["1. SmallCNN, natural"]
