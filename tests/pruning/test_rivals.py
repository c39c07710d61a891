"""Every rival reaches its size by its own way, in the same number of epochs, and comes back from its file."""

import dataclasses
import itertools
import re

import pytest
import torch
from torch import nn

from rqlib import models, pruning
from rqlib.core import codebooks, files, parametrizations
from rqlib.measures import cost
from rqlib.pruning import constraints, factors, rivals
from rqlib.training import objectives
from tests.pruning import plans

RATIO = 0.2
BITS = {name: rival.bits for name, rival in pruning.RIVALS.items()}
EPOCHS = {"pretrain": 1, "prune": 1, "finetune": 2}


@pytest.fixture(scope="module", autouse=True)
def fast_codebooks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codebooks, "EXACT", 100)
        yield


@pytest.fixture(scope="module")
def plan() -> pruning.Plan:
    return plans.small("adversarial", EPOCHS, train=64, test=20)


@pytest.fixture(scope="module")
def networks(dense, plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    found = pruning.joint(dense, list(pruning.RIVALS), [RATIO], dataclasses.replace(plan, folder=folder))
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    return found, folder


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_every_rival_keeps_to_both_constraints(networks, dense):
    found, _ = networks
    assert list(found) == [(name, 1.0 if name == "DA" else RATIO) for name in pruning.RIVALS]
    count = constraints.budget(RATIO, cost.weight_count(dense))
    for (rival, _), network in found.items():
        if rival == "DA":
            continue
        nonzero = sum(int(one.count_nonzero()) for one in factors.tensors(network).values())
        assert nonzero <= count
        assert nonzero > 0.7 * count, rival
        values = max(int(one.unique().count_nonzero()) for one in factors.tensors(network).values())
        assert (values <= 256) == (BITS[rival] == 8), (rival, values)


def test_all_are_trained_for_the_same_number_of_epochs(networks):
    """The histories in the states, whose names begin with the rival's."""
    _, folder = networks
    epochs = {path.stem: len(files.load_tensors(path)["history"]) for path in folder.rglob("*.pt")}
    total = EPOCHS["prune"] + EPOCHS["finetune"]
    assert epochs.pop("natural") == epochs.pop("adversarial") == EPOCHS["pretrain"]
    for start in ("identity", "svd"):
        first = epochs.pop(f"{start}-{RATIO}")
        for rival in ("ATMC-32", "ATMC-8"):
            name = f"{rival}{'-svd' if start == 'svd' else ''}-{RATIO}"
            parts = [epochs.pop(stage) for stage in (f"{name}-32", f"{name}-8") if stage in epochs]
            assert first + sum(parts) == total
            assert len(parts) == (1 if rival == "ATMC-32" else 2)
    assert set(epochs.values()) == {total}
    assert {re.sub("-(0.2|1.0)$", "", name) for name in epochs} == {"NAP", "DA", "AP", "Al0", "ALR", "masked_qat"}


@torch.no_grad()
def test_every_rival_comes_back_from_its_file(networks, plan, dense, tmp_path):
    found, _ = networks
    table = pruning.sizes(found, plan, tmp_path).set_index("rival")
    assert (table.weights == cost.weight_count(dense)).all()
    assert (table.file_bytes - table.expected_bytes).between(0, 900).all(), "headers"
    assert (table.file_ratio.drop("DA") > 3).all()
    assert table.ratio["ATMC-8"] > table.ratio["ATMC-32"]
    assert (table.ratio_with_index <= table.ratio).all()
    assert (table.codebook_bits <= table.coded_bits).all()
    assert (table.most_values[["ATMC-8", "ATMC-8-svd", "masked_qat"]] <= 256).all()
    assert table.dense_bits["DA"] == table.coded_bits["DA"]


def test_where_the_nonzeros_are(networks):
    found, _ = networks
    table = pruning.factor_shares(found)
    shares = table.pivot(index="rival", columns="factor", values="share").fillna(0)
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
    assert shares.weight[["NAP", "AP", "Al0", "masked_qat"]].to_numpy() == pytest.approx(1)
    assert shares.rest["ALR"] == 0
    assert shares.left["ATMC-32"] + shares.right["ATMC-32"] > 0.9, "from identity the others hardly wake"
    assert shares.rest["ATMC-32-svd"] == 1, "random weights have no low rank"


def test_what_is_of_low_rank_is_stored_so(dense, plan):
    planted = models.build("SmallCNN", plan.images.spec)
    planted.load_state_dict(dense.state_dict())
    weight = planted.classifier.linear1.weight
    with torch.no_grad():
        weight.copy_(torch.randn(120, 2) @ torch.randn(2, weight.shape[1]) / 20)
    found = pruning.joint(planted, ["ATMC-8-svd", "ALR"], [0.1], plan)
    shares = pruning.factor_shares(found).pivot(index="rival", columns="factor", values="share")
    assert shares.left["ATMC-8-svd"] > 0.02
    assert shares.right["ATMC-8-svd"] > 0.1
    assert factors.ranks_of(found["ATMC-8-svd", 0.1])["classifier.linear1"] == 2


def test_half_clean_half_attacked_images_and_two_sizes(dense, plan, monkeypatch):
    calls, mixed = [], objectives.mixed
    spy = lambda model, *rest, **settings: calls.append(1) or mixed(model, *rest, **settings)  # noqa: E731
    monkeypatch.setitem(objectives.OBJECTIVES, "mixed", spy)
    monkeypatch.setitem(objectives.ROBUST, "mixed", spy)
    plan = dataclasses.replace(plan, objectives={"prune": "mixed", "finetune": "mixed"})
    found = pruning.joint(dense, ["Al0"], [0.1, 0.2], plan)
    assert list(found) == [("Al0", 0.1), ("Al0", 0.2)]
    assert len(calls) == 1 + 2 * 3, "one batch for each epoch: dense once, and each size"


def test_a_teacher_is_half_of_the_label():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).train()
    x, y, seen = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1]), []
    rivals.Distilled(lambda model, x, labels: seen.append(labels), teacher)(None, x, y)
    assert torch.allclose(seen[0], (teacher(x).softmax(1) + nn.functional.one_hot(y)) / 2)
    assert teacher.training


@pytest.mark.parametrize("rival", ["ATMC-8", "masked_qat"])
def test_interrupted_in_every_epoch_it_ends_the_same(dense, plan, tmp_path, monkeypatch, networks, rival):
    """Codebooks, duals and the number of steps survive. One batch for each epoch, so that all stages are met."""
    monkeypatch.setattr(constraints, "EVERY", 1)
    plan, batches = dataclasses.replace(plan, epochs=EPOCHS | {"finetune": 5}), itertools.count()
    undisturbed = pruning.joint(dense, [rival], [RATIO], plan)
    found, interruptions, adversarial = {}, 0, objectives.adversarial

    def failing(model, x, y, **settings):
        if next(batches) % 2:
            raise KeyboardInterrupt
        return adversarial(model, x, y, **settings)

    monkeypatch.setitem(objectives.OBJECTIVES, "adversarial", failing)
    monkeypatch.setitem(objectives.ROBUST, "adversarial", failing)
    while not found:
        try:
            found = pruning.joint(dense, [rival], [RATIO], dataclasses.replace(plan, folder=tmp_path))
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == 1 + 1 + 5 - 1
    assert same(found[rival, RATIO], undisturbed[rival, RATIO])


class Slow(nn.Sequential):
    """Its BatchNorm moves by a fiftieth per batch."""

    def __init__(self):
        layers = [nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8, momentum=0.02), nn.ReLU(), nn.Flatten()]
        super().__init__(*layers, nn.Linear(8 * 8 * 8, 10))


@pytest.mark.parametrize("rival", [name for name in pruning.RIVALS if name != "DA"])
def test_the_first_training_meets_the_statistics_of_what_is_left(plan, monkeypatch, rival):
    starts, train = [], rivals._Bench.train

    def seen(bench, model, *rest, **options):
        starts.append(parametrizations.bake(model).eval())
        return train(bench, model, *rest, **options)

    monkeypatch.setattr(rivals._Bench, "train", seen)
    pruning.joint(Slow(), [rival], [RATIO], plan)
    norm, images = starts[0][1], plan.images.train.images / 255
    inputs = starts[0][0](images).detach()
    assert torch.allclose(norm.running_mean, inputs.mean((0, 2, 3)), atol=5e-3)  # masked_qat is rounded later
    assert torch.allclose(norm.running_var, inputs.var((0, 2, 3)), rtol=2e-2)


class Grouped(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, 4), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(8 * 8 * 4, 10))


def test_convolutions_with_groups_are_left_alone_and_said(plan):
    model = Grouped()
    with pytest.warns(UserWarning, match="left as they are, because they have groups or share .* layer: 1$"):
        found = pruning.joint(model, ["Al0", "ATMC-8"], [0.2], plan)
    count = constraints.budget(0.2, 108 + 2560)
    for network in found.values():
        assert network[1].weight.all()
        assert sum(int(one.count_nonzero()) for one in factors.tensors(network).values()) <= count


def test_what_shares_a_weight_still_shares_it_in_every_rival(plan, tmp_path):
    plan = dataclasses.replace(plan, model="tests.pruning.odd:tied")
    start = plan.fresh()
    with pytest.warns(UserWarning, match="left as they are, .* share the weight of another layer: .*one, .*other$"):
        found = pruning.joint(start, list(pruning.RIVALS), [0.5], plan)
    assert list(found) == [(name, 1.0 if name == "DA" else 0.5) for name in pruning.RIVALS]
    for rival, network in found.items():
        baked = parametrizations.bake(network).network
        assert baked.one.weight is baked.other.weight, rival
        assert baked.one.weight.all(), rival
    table = pruning.sizes(found, plan, tmp_path).set_index("rival")
    assert (table.weights == cost.weight_count(start)).all()
    assert (table.file_bytes - table.expected_bytes).between(0, 1200).all(), "headers"


def test_too_small_is_said(dense, plan, recwarn):
    found = pruning.joint(dense, ["ALR", "AP"], [0.001], plan)
    messages = [str(one.message) for one in recwarn]
    assert any("ALR-0.001 is left out: expected a budget of at least" in text for text in messages)
    assert any(re.match("AP at the ratio 0.001 leaves no weight in .*linear", text) for text in messages)
    assert list(found) == [("AP", 0.001)]


def test_states_of_another_network_are_refused(dense, plan, networks):
    _, folder = networks
    other = models.build("SmallCNN", plan.images.spec, seed=5)
    with pytest.raises(ValueError, match="adversarial.pt belongs to another training: start"):
        pruning.joint(other, ["AP"], [RATIO], dataclasses.replace(plan, folder=folder))


@pytest.mark.parametrize(
    ("asked", "changes", "words"),
    [
        ((["ATMC"], [0.1]), {}, "unknown rival 'ATMC' .did you mean 'ATMC-8'"),
        ((["AP"], [0]), {}, "expected a ratio above 0 and at most 1"),
        ((["AP"], [0.5, 1.5]), {}, "above 0 and at most 1 .* got 1.5"),
        ((["AP"], [1e-7]), {}, "a ratio that keeps a weight"),
        (
            (["AP"], [0.5]),
            {"objectives": {"prune": "adversarial", "finetune": "natural"}},
            "attacks images, .*'natural'",
        ),
        ((["AP"], [0.5]), {"epochs": EPOCHS | {"finetune": 1}}, "expected at least 2 epochs to finetune, got 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(dense, plan, asked, changes, words):
    plan = dataclasses.replace(plan, **changes)
    for refusing in (pruning.check_joint, pruning.joint):
        with pytest.raises(ValueError, match=words):
            refusing(dense, *asked, plan)
    pruning.check_joint(dense, [], [0.5], plan)


def test_without_rivals_nothing_is_asked_of_the_plan(dense, plan):
    natural = dataclasses.replace(plan, objectives={"prune": "natural", "finetune": "natural"})
    assert pruning.joint(dense, [], [0.5], natural) == {}


def test_a_network_that_is_pruned_or_parametrized_already_is_refused(dense, plan):
    masked = pruning.apply_masks(dense, pruning.magnitude_masks(dense, 0.1))
    with pytest.raises(ValueError, match="expected a plain weight, found a parametrized one"):
        pruning.joint(masked, ["AP"], [0.5], plan)
    with pytest.raises(ValueError, match="weights are 0: the network is already pruned"):
        pruning.joint(parametrizations.bake(masked), ["AP"], [0.5], plan)


@pytest.mark.filterwarnings("ignore:the gradient of the loss is exactly zero")  # before the first step
def test_a_new_network_may_begin_with_zeros(plan):
    """A head of zeros, and a single zero that was drawn by chance."""
    model = Grouped()
    model[1] = nn.Identity()
    nn.init.zeros_(model[3].weight)
    model[0].weight.data.view(-1)[0] = 0
    found = pruning.joint(model, ["AP", "ATMC-8-svd"], [0.5], plan)
    assert all(network[3].weight.any() for network in found.values())


def test_only_new_networks_are_trained_with_short_gradients(dense, plan):
    bench = rivals._Bench(dense, plan, "short")
    phase = plan.phase("pretrain", "joint/dense")
    assert {stage: bench._recipe(phase, 2, stage).clip_norm for stage in rivals.STAGES} == {
        "dense": 10.0,
        "weights": None,
        "factors": None,
        "values": None,
    }
