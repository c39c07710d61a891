"""Pruned networks are certified as they are, in a format, and by noise; and pruned for what can be proved."""

import dataclasses

import pytest
import torch
from torch import nn

from rqlib import attacks, certification, pruning
from rqlib.certification import figures as certified_figures
from rqlib.pruning import algorithms, factors, figures, masks
from rqlib.training.certified_objectives import Certified
from tests.networks import narrow
from tests.pruning import plans

ORDER = ["clean", "PGD", "CROWN", "CROWN-IBP", "IBP"]

# After so short trainings a network may answer the same for every image.
pytestmark = pytest.mark.filterwarnings("ignore:the gradient of the loss is exactly zero", "ignore:.*leaves no weight")


@pytest.fixture(scope="module")
def plan() -> pruning.Plan:
    settings = {"model": "CNN_small", "era": {"steps": 2, "restarts": 1}}
    return plans.small("ibp", {"prune": 1, "finetune": 1, "pretrain": 1}, train=128, test=20, **settings)


@pytest.fixture(scope="module")
def dense(plan) -> nn.Module:
    return plan.fresh()


@pytest.fixture(scope="module")
def pruned(dense, plan):
    return pruning.methods(dense, ["lwm", "hydra"], [0.1], plan)


@pytest.fixture(scope="module")
def table(dense, pruned, plan):
    return pruning.certified({("dense", 1.0): dense, **pruned}, plan, [0.5, 2.0], images=10)


def test_each_network_in_each_format_at_each_radius(table):
    assert len(table) == 3 * 2 * 2
    assert list(table.format.unique()) == ["float", "INT_8"]
    assert (table.certified_images == 10).all()
    assert (table[ORDER].diff(axis=1).iloc[:, 1:] <= 0).all(axis=None), "never more proved than withstood"
    figure = figures.certified_against_radius(table)
    assert [line.name for line in figure.data][::2] == [
        f"{name}{form}" for name in ("dense", "lwm 0.1", "hydra 0.1") for form in ("", " INT_8")
    ]
    assert figure.data[0].line.dash == "solid"
    assert figure.data[2].line.dash == "dash"
    assert list(figure.data[0].x) == [0.5, 2.0]


def test_only_what_is_asked_for(dense, plan):
    found = pruning.certified({("dense", 1.0): dense}, plan, [1.0], images=5, bits=None, asked=["IBP"])
    assert [name for name in ORDER if name in found] == ["clean", "PGD", "IBP"]
    assert figures.certified_against_radius(found).layout.annotations[1].text == "certified by IBP"
    assert len(certified_figures.accuracy_ladder(found).data) == 3
    with pytest.raises(ValueError, match="unknown bound 'CRWN' .did you mean 'CROWN'"):
        pruning.certified({("dense", 1.0): dense}, plan, [1.0], images=5, asked=["CRWN"])


def test_a_network_without_bounds_is_left_out_and_named(plan):
    odd = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.GELU())
    with pytest.warns(UserWarning, match="not certified: no bounds are known for GELU"):
        found = certification.ladder_if_known(odd, *plan.images.test.take(3), [0.01])
    assert found.empty
    assert list(found)[:2] == ["epsilon_255", "clean"]


def test_certified_by_noise(dense, pruned, plan):
    noise = pruning.Smoothing(0.25, images=4, draws=[50])
    tables = pruning.smoothed({("dense", 1.0): dense, **pruned}, plan, noise)
    assert list(tables) == ["dense", "lwm 0.1", "hydra 0.1"]
    assert all(len(found) == 4 for found in tables.values())
    assert len(figures.smoothed_accuracy(tables).data) == 3


def test_networks_hidden_in_others_are_certified_by_noise(plan):
    noise = pruning.Smoothing(0.25, radius=0.05, images=3, draws=[50])
    found = pruning.hidden(["smoothed"], plan, noise)
    assert found.smoothed_accuracy.between(0, 1).all()
    figure = figures.hidden_networks(found)
    assert figure.layout.xaxis.title.text == "pruned for (in each field: robust, clean, by noise)"
    assert all(cell.count("<br>") == 2 for row in figure.data[0].text for cell in row)


def test_phases_of_certified_objectives(plan):
    """New networks meet a growing ball, trained ones the whole; the learning rates are the same for all methods."""
    new, choosing, tuning, admm = (plan.phase(kind, "x") for kind in ("pretrain", "prune", "finetune", "admm"))
    assert isinstance(new.objective, Certified)
    assert new.objective.ramp is not None
    assert choosing.objective.ramp is tuning.objective.ramp is None
    assert tuning.objective.epsilon == plan.ball.epsilon
    assert {phase.recipe.optimizer_name for phase in (new, choosing, tuning, admm)} == {"adam"}
    assert tuning.recipe.lr == admm.recipe.lr == 5e-4
    assert tuning.attack is not None
    with pytest.raises(ValueError, match="expected an L-infinity ball for the objective ibp"):
        dataclasses.replace(plan, ball=attacks.L2(0.5))
    mixtrain = dataclasses.replace(plan, objectives={"prune": "mixtrain", "finetune": "mixtrain"})
    assert mixtrain.phase("finetune", "x").objective.epsilon == plan.ball.epsilon


def test_the_last_epoch_counts_where_the_ball_grows(plan, monkeypatch):
    kept = {}
    monkeypatch.setattr(algorithms.training, "fit", lambda *_, keep, **__: kept.setdefault("keep", keep))
    plan.phase("pretrain", "x").fit(nn.Linear(1, 1), "x")
    assert kept["keep"] is None, "as the objective says"


def test_what_cannot_be_certified_is_said_before_anything_is_trained():
    with pytest.raises(ValueError, match="50 draws at sigma 0.1 can certify an L2 radius of at most"):
        pruning.Smoothing(0.1, radius=0.25, draws=[50])
    with pytest.raises(ValueError, match="expected increasing numbers of draws"):
        pruning.Smoothing(0.1, draws=[100, 50])


@pytest.mark.parametrize(("radii", "asked"), [([], ["IBP"]), ([1.0], [])])
def test_without_radii_or_bounds_there_is_no_ladder(dense, plan, radii, asked):
    with pytest.raises(ValueError, match="expected at least one radius and one of the bounds"):
        pruning.certified({("dense", 1.0): dense}, plan, radii, images=5, asked=asked)


def test_scores_move_for_a_bound(dense, plan):
    """HYDRA for IBP chooses other weights than the largest."""
    plan = dataclasses.replace(plan, epochs={"prune": 3, "finetune": 1, "pretrain": 1})
    found = algorithms.hydra(dense, 0.3, plan.phase("prune", "scores"))
    largest = masks.apply_masks(dense, masks.magnitude_masks(dense, 0.3))
    assert masks.achieved(found).nonzero.sum() == masks.achieved(largest).nonzero.sum()
    changed = [
        (one != other).any()
        for one, other in zip(found.state_dict().values(), largest.state_dict().values(), strict=True)
    ]
    assert any(changed)


@torch.no_grad()
@pytest.mark.parametrize("name", ["CNN_small", "SmallCNN"])  # without and with BatchNorm
def test_bounds_of_a_factorized_network_are_those_of_its_weights(name):
    plain = narrow(name)
    factorized = factors.factorized(plain, dict.fromkeys(factors.layer_names(plain)))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = plain(x).argmax(1)
    for bound in (certification.ibp, certification.crown_ibp, certification.crown):
        expected = bound(plain, x, y, epsilon=0.01)
        assert torch.allclose(bound(factorized, x, y, epsilon=0.01), expected, atol=1e-4)
