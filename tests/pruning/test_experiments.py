"""The experiments of the notebook: their tables, their networks, and that an interruption changes nothing."""

import dataclasses
import itertools
import math

import pandas
import pytest
import torch
from torch import nn

from rqlib import attacks, data, pruning, training
from rqlib.core import files
from rqlib.core.parametrizations import bake
from rqlib.measures import cost
from rqlib.pruning import experiments, packed, published, savings
from rqlib.training import objectives
from tests.networks import COLOR
from tests.pruning import plans

ORIGIN = ["images", "model", "width", "pretrained_for"]
ACCURACIES = ["clean_accuracy", "robust_accuracy"]


@pytest.fixture(scope="module")
def plan() -> pruning.Plan:
    settings = {"era": {"steps": 2, "restarts": 1}, "pretrained_for": "mixed"}
    return plans.small("natural", {"prune": 1, "finetune": 2, "pretrain": 1}, train=256, test=40, **settings)


@pytest.fixture(scope="module")
def pruned(dense, plan):
    return pruning.methods(dense, ["lwm", "scratch"], [0.5, 0.12], plan)


@pytest.fixture(scope="module")
def scored(dense, pruned, plan):
    return pruning.score({("dense", 1.0): dense, **pruned}, plan)


@pytest.mark.parametrize(
    ("kind", "objective", "expected"),
    [
        ("prune", None, (0.1, 3, True)),
        ("admm", None, (0.01, 3, True)),
        ("finetune", None, (0.01, 1, False)),
        ("pretrain", "trades", (0.1, 2, True)),
        ("pretrain", "smoothed", (0.1, 2, False)),
        ("scratch", None, (0.1, 5, False)),
    ],
)
def test_phases_of_a_plan(plan, kind, objective, expected):
    goals = {"prune": "adversarial", "finetune": "natural"}
    plan = dataclasses.replace(plan, objectives=goals, epochs={"prune": 3, "finetune": 0, "pretrain": 2})
    phase = plan.phase(kind, "x", objective=objective)
    assert (phase.recipe.lr, phase.recipe.epochs, phase.attack is not None) == expected
    wanted = objectives.OBJECTIVES[objective or goals["prune" if kind in ("prune", "admm") else "finetune"]]
    assert phase.objective.func is wanted


@pytest.mark.parametrize(("kind", "goal"), [("pretrain", "mixed"), ("pretrain", "natural"), ("finetune", "mixed")])
def test_only_attacks_on_new_networks_grow(plan, kind, goal):
    phase = dataclasses.replace(plan, ramp=0.5).phase(kind, "x", objective=goal)
    if (kind, goal) != ("pretrain", "mixed"):
        if goal == "mixed":
            assert phase.objective.keywords["attack"].keywords["ball"] == plan.ball
        return
    half = phase.objective.made(0.5).keywords["attack"].keywords
    assert half["ball"].epsilon == pytest.approx(plan.ball.epsilon / 2)
    assert half["step_size"] == pytest.approx(2.5 * half["ball"].epsilon / plan.attack_steps)
    assert phase.attack.keywords["ball"] == plan.ball


@pytest.mark.parametrize("ramp", [0.0, 0.5])
def test_n_fgsm_trains_on_one_noisy_step_and_is_scored_under_pgd(plan, ramp):
    phase = dataclasses.replace(plan, ramp=ramp, attack_steps=7).phase("pretrain", "x", objective="n_fgsm")
    inner = (phase.objective.made(1.0) if ramp else phase.objective).keywords["attack"]
    assert inner.func is attacks.noisy_fgsm
    assert inner.keywords == {"ball": plan.ball}
    assert (phase.attack.func, phase.attack.keywords["steps"]) == (attacks.pgd, 7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objectives": {"prune": "natural", "finetune": "n_fgsm"}, "ball": attacks.L2(1)},
            "expected an L-infinity ball for the objective n_fgsm",
        ),
        ({"objectives": {"prune": "natural"}}, "expected objectives of prune and finetune, got prune"),
        ({"epochs": {}}, "expected epochs of prune and finetune and pretrain, got none"),
        ({"objectives": {"prune": "natural", "finetune": "natral"}}, "did you mean 'natural'"),
        ({"ramp": 1.5}, r"expected ramp in \[0, 1\], .* got 1.5"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan, changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(plan, **changes)


def test_every_method_at_every_size(dense, pruned, scored):
    keys = [("lwm", 0.5), ("lwm", 0.12), ("scratch", 0.5), ("scratch", 0.12)]
    assert list(pruned) == keys
    leading = ["method", "kept", *ORIGIN, "weights", "nonzero"]
    assert list(scored) == [*leading, "dense_bits", "coded_bits", "index_bits", "other_bits", *ACCURACIES]
    assert list(zip(scored.method, scored.kept, strict=True)) == [("dense", 1.0), *keys]
    assert scored[ORIGIN].drop_duplicates().to_numpy().tolist() == [["digits", "SmallCNN", 1.0, "mixed"]]
    count = cost.weight_count(dense)
    assert scored.weights.tolist()[:3] == [count] * 3
    assert scored.nonzero.tolist()[1:3] == pytest.approx([0.5 * count, 0.12 * count], abs=3)
    assert scored.nonzero.tolist()[3:] <= [0.5 * count, 0.12 * count]
    assert (scored.robust_accuracy <= scored.clean_accuracy).all()


def test_without_epochs_nothing_is_fine_tuned(dense, plan, monkeypatch):
    plan = dataclasses.replace(plan, epochs={**plan.epochs, "finetune": 0})
    (network,) = pruning.methods(dense, ["lwm"], [0.5], plan).values()
    masked = pruning.apply_masks(dense, pruning.magnitude_masks(dense, 0.5))
    assert all(torch.equal(value, masked.state_dict()[name]) for name, value in network.state_dict().items())
    trained = []
    monkeypatch.setattr(training, "fit", lambda *_, **options: trained.append(options))
    monkeypatch.setattr(savings.cost, "latency", lambda model, x: len(x) / 1000)
    pruning.filters(dense, plan)
    assert not trained


def test_files_are_about_as_large_as_expected(pruned, plan, tmp_path, monkeypatch):
    sizes = pruning.on_disk(pruned, plan, tmp_path)
    assert [*zip(sizes.method, sizes.kept, strict=True)] == [("lwm", 0.5), ("lwm", 0.12)]
    assert {path.name for path in tmp_path.iterdir()} == {"lwm-0.5.rqz", "lwm-0.12.rqz"}
    assert (sizes.file_bytes / sizes.expected_bytes).between(0.98, 1.1).all()
    assert (sizes.file_bytes < sizes.dense_bytes).all()
    assert sizes.ratio_with_index.is_monotonic_increasing
    monkeypatch.setattr(packed, "load", lambda path, expected: (bake(pruned["scratch", 0.5]), {}))
    with pytest.raises(AssertionError, match="has other logits"):
        pruning.on_disk(pruned, plan, tmp_path)


def test_eight_bits_of_what_keeps_a_tenth(pruned, scored, plan):
    changes = pruning.eight_bits(pruned, scored, plan, bits=4)
    assert list(changes) == ["method", "kept", *ORIGIN, "weights", *ACCURACIES, "clean_change", "robust_change"]
    assert changes.method.tolist() == ["lwm INT_4", "scratch INT_4"]
    assert (changes.kept == 0.12).all()
    before = scored[scored.kept == 0.12].clean_accuracy.to_numpy()
    assert (changes.clean_accuracy - changes.clean_change).to_numpy() == pytest.approx(before)


def test_removed_filters_leave_the_logits(dense, plan, monkeypatch):
    monkeypatch.setattr(savings.cost, "latency", lambda model, x: len(x) / 1000)
    table, gap = pruning.filters(dense, plan)
    assert table.index.tolist() == ["dense", "half zeroed", "half removed"]
    assert list(table) == ["params", "nonzero", "macs", "bits", "milliseconds", "clean_accuracy"]
    assert table.macs["half removed"] < 0.5 * table.macs["half zeroed"] == 0.5 * table.macs["dense"]
    assert table.params["half removed"] < 0.5 * table.params["half zeroed"] == 0.5 * table.params["dense"]
    assert table.nonzero["half zeroed"] < table.nonzero["dense"]
    assert table.clean_accuracy["half removed"] == table.clean_accuracy["half zeroed"]
    assert table.milliseconds.tolist() == [40, 40, 40]
    assert gap < 1e-4


def test_hidden_networks_and_ablation(dense, plan, tmp_path):
    plan = dataclasses.replace(plan, folder=tmp_path)
    found = pruning.hidden(["natural", "smoothed"], plan)
    assert list(found) == ["pretrained_for", "pruned_for", *ACCURACIES]
    assert found.pruned_for.tolist() == ["none", "natural", "smoothed"] * 2
    pretrained = files.load_tensors(tmp_path / "hidden-natural/pretrain.pt")["best"]
    chosen = files.load_tensors(tmp_path / "hidden-natural/smoothed/hydra-0.5-weights.pt")["best"]
    stored = chosen["features.0.conv.parametrizations.weight.original"]
    assert torch.equal(stored, pretrained["features.0.conv.weight"])

    ablation = pruning.ablate(dense, 0.1, plan, images=[100], epochs=[1, 2])
    assert list(ablation) == ["varied", "amount", *ACCURACIES]
    assert list(zip(ablation.varied, ablation.amount, strict=True)) == [("images", 100), ("epochs", 1), ("epochs", 2)]
    for varied, images, epochs in (("images-100", 100, 1), ("epochs-2", 256, 2)):
        identity = files.load_tensors(tmp_path / f"ablation-{varied}/hydra-0.1-weights.pt")["identity"]
        assert (identity["images"], identity["recipe"]["epochs"]) == (images, epochs)


def test_an_ablation_tells_how_many_images_there_are(dense, plan, capsys):
    ablation = pruning.ablate(dense, 0.1, plan, images=[100, 256, 300, 1000])
    assert ablation.amount.tolist() == [100, 256]
    assert "there are only 256 training images: they stand for 300, 1000\n" in capsys.readouterr().out


def test_interrupted_again_and_again_it_ends_the_same(dense, plan, tmp_path, monkeypatch):
    """Stopped after every single epoch of every phase; then another size in the same folder."""
    plan = dataclasses.replace(plan, images=plan.images.take(train=128))  # one batch per epoch
    names, batches = [*pruning.METHODS, "scratch"], itertools.count()

    def experiment(kept, folder=None):
        return pruning.methods(dense, names, kept, dataclasses.replace(plan, folder=folder))

    def failing(model, x, y):
        if next(batches) % 2:
            raise KeyboardInterrupt
        return objectives.natural(model, x, y)

    undisturbed, found, interruptions = experiment([0.2, 0.5]), {}, 0
    with monkeypatch.context() as patch:
        patch.setitem(objectives.OBJECTIVES, "natural", failing)
        while not found:
            try:
                found = experiment([0.2], tmp_path)
            except KeyboardInterrupt:
                interruptions += 1
    assert interruptions > 2 * len(names)
    found |= experiment([0.5], tmp_path)
    assert found.keys() == undisturbed.keys()
    for key, network in found.items():
        expected = undisturbed[key].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items()), key


def test_compact_is_the_widest_with_no_more_weights():
    for weights in (1000, 8000, 60000):
        found = experiments.compact("SmallCNN", COLOR, weights)
        assert 0.6 * weights < cost.weight_count(found) <= weights
        assert found(torch.rand(2, *COLOR.shape)).shape == (2, 10)
    with pytest.raises(ValueError, match="leaves 0 channels"):
        experiments.compact("SmallCNN", COLOR, 10)


OTHER_SETTINGS = [
    {"model": "VGG_16"},
    {"width": 0.5},
    {"structure": "filters"},
    {"pretrained_for": None},
    {"objectives": {"prune": "adversarial", "finetune": "natural"}},
    {"epochs": {"prune": 20, "finetune": 10, "pretrain": 7}},
    {"ball": attacks.L2(8 / 255)},
    {"era": {"steps": 50, "restarts": 1}},
    {"attack_steps": 1},
]


def black(count: int) -> data.Split:
    """So many black images of one pixel."""
    return data.Split(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


def test_published_rows_beside_ours_say_whether_the_setting_is_that_of_the_paper(plan, scored):
    table = published.PUBLISHED.pivot_table("published_robust_accuracy", "kept", "method")
    assert (table.hydra > table.lwm).all()
    assert table.loc[0.01].tolist() == [0.417, 0.343]
    beside = pruning.beside_paper(scored.assign(kept=scored.kept.replace(0.12, 0.1)), plan)
    ours = beside.dropna()
    assert ours[["method", "kept"]].to_numpy().tolist() == [["lwm", 0.1]]
    assert ours.robust_accuracy.tolist() == [scored.robust_accuracy[2]]
    assert set(beside.setting) == {"another setting: not comparable"}
    parts = {"train": black(45000), "test": black(10000), "validation_indices": torch.arange(5000)}
    images = dataclasses.replace(plan.images, title="CIFAR-10", **parts)
    same = dataclasses.replace(
        plan,
        images=images,
        model="VGG_16_HYDRA",
        attack_steps=10,
        objectives={"prune": "adversarial", "finetune": "adversarial"},
        epochs={"prune": 20, "finetune": 100, "pretrain": 7},
        era={"steps": 50, "restarts": 10},
        pretrained_for="adversarial",
    )
    assert set(pruning.beside_paper(scored, same).setting) == {"ours on CIFAR-10, without the extra images"}
    others = [images.take(train=1000), images.take(test=500), dataclasses.replace(images, title="CIFAR-10 (JPEG)")]
    for changes in [*OTHER_SETTINGS, *({"images": other} for other in others)]:
        assert not published.is_setting_of_paper(dataclasses.replace(same, **changes)), changes


def test_what_a_network_from_elsewhere_cannot_do_is_said(dense, plan, monkeypatch):
    stranger = dataclasses.replace(plan, model="torchvision:resnet18")
    with pytest.warns(UserWarning, match="scratch is left out: .* narrower, not torchvision:resnet18"):
        assert pruning.methods(dense, ["scratch"], [0.1], stranger) == {}

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = dense

        def forward(self, x):
            return self.inner(x if x.max() < 9 else x / 2)

    monkeypatch.setattr(savings.cost, "latency", lambda model, x: len(x) / 1000)
    with pytest.warns(UserWarning, match="filters are left out: torch.fx cannot trace"):
        table, gap = pruning.filters(Branching(), plan)
    assert table.index.tolist() == ["dense"]
    assert math.isnan(gap)


def test_new_networks_are_of_the_kind_that_is_pruned(plan):
    spec = dataclasses.replace(plan.images.spec, mean=(0.1, 0.2, 0.3))
    new = dataclasses.replace(plan, model="AlexNet", width=0.1, spec=spec, options={"dropout": 0.3}).fresh()
    assert new.normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert {part.p for part in new.modules() if isinstance(part, nn.Dropout)} == {0.3}


def test_a_sentence_says_how_few_weights_are_enough():
    rows = [("dense", 1.0, 0.98, 0.8), ("lwm", 0.1, 0.9, 0.74), ("hydra", 0.1, 0.95, 0.78), ("lwm", 0.01, 0.3, 0.1)]
    scored = pandas.DataFrame(rows, columns=["method", "kept", "clean_accuracy", "robust_accuracy"])
    said = pruning.verdict(scored, 150)
    assert said.startswith("0.1 of the weights are enough: chosen by hydra, the network is right on 95.0% of 150")
    assert said.endswith("78.0% under attack (before pruning: 98.0% and 80.0%).")
    none = pruning.verdict(scored[scored.kept != 0.1], 150)
    assert none.startswith("No pruned network stays within 5 points of the dense one, clean and under attack; the most")
    collapsed = scored.assign(robust_accuracy=0.1)
    assert "0.1 of the weights are enough: chosen by hydra" in pruning.verdict(collapsed, 150), "0.01 guesses"
    assert "No network was pruned" in pruning.verdict(scored[scored.method == "dense"], 150)


@pytest.mark.parametrize(("clean", "robust", "as_good"), [(0.96, 0.79, True), (0.9, 0.79, False), (0.96, 0.7, False)])
@pytest.mark.parametrize("loss", [0.05, 0.001])
def test_a_network_from_scratch_is_named_beside_what_was_pruned_not_instead(clean, robust, as_good, loss):
    rows = [("dense", 1.0, 0.98, 0.8), ("hydra", 0.1, 0.95, 0.78), ("scratch", 0.1, clean, robust)]
    rows += [("scratch", 0.01, 0.99, 0.9)]
    scored = pandas.DataFrame(rows, columns=["method", "kept", "clean_accuracy", "robust_accuracy"])
    said = pruning.verdict(scored, 150, loss=loss)
    assert "hydra" in said
    assert said.endswith("80.0%); a network of that size trained from scratch is as good." if as_good else "80.0%).")
    assert "No network was pruned" in pruning.verdict(scored[scored.method != "hydra"], 150)
