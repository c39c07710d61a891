"""Rivals of the same true size: foreseen before training, compared under three attacks, and what is claimed of them."""

import dataclasses

import pandas
import pytest
import torch

from rqlib import models, pruning
from rqlib.core import projections
from rqlib.measures import cost
from rqlib.pruning import comparison, constraints, factors, figures, rivals, same_size, under_attacks
from tests.networks import narrow
from tests.pruning import plans

RIVALS = ["NAP", "DA", "ATMC-8"]
COMPRESSIONS = [8.0, 32.0]

# After so short trainings a network may answer the same for every image.
pytestmark = pytest.mark.filterwarnings("ignore:the gradient of the loss is exactly zero", "ignore:.*leaves no weight")


@pytest.fixture(scope="module")
def plan() -> pruning.Plan:
    epochs = {"pretrain": 1, "prune": 1, "finetune": 2}
    return plans.small("adversarial", epochs, train=64, test=30, era={"steps": 2, "restarts": 1})


@pytest.fixture(scope="module")
def compared(dense, plan, tmp_path_factory):
    networks = pruning.joint(dense, RIVALS, [0.05], plan, compressions=COMPRESSIONS)
    folder = tmp_path_factory.mktemp("files")
    table = pruning.compare(networks, dense, plan, folder, compressions=COMPRESSIONS, gamma=20, steps=3)
    return table, networks


@torch.no_grad()
@pytest.mark.parametrize("compression", [2, 4, 8, 16, 32, 64])
def test_the_file_of_the_largest_weights_is_as_small_as_foreseen(dense, plan, tmp_path, compression):
    count = same_size.nonzeros(dense, compression, bits=None)
    masked = models.build("SmallCNN", plan.images.spec)
    stored = list(factors.tensors(masked).values())
    for tensor, mask in zip(stored, projections.largest_of_all(stored, count), strict=True):
        tensor.mul_(mask)
    table = pruning.sizes({("AP", 0.5): masked}, plan, tmp_path)
    assert table.file_ratio[0] == pytest.approx(compression, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("compression", [4, 8, 16, 32])
def test_so_is_a_file_with_codebooks(dense, plan, tmp_path, compression):
    count = same_size.nonzeros(dense, compression, bits=8)
    model = models.build("SmallCNN", plan.images.spec)
    stored = list(factors.tensors(model).values())
    for tensor, mask in zip(stored, projections.largest_of_all(stored, count), strict=True):
        tensor.copy_(constraints.few_values(tensor * mask, 8))
    table = pruning.sizes({("ATMC-8", 0.5): model}, plan, tmp_path)
    assert table.file_ratio[0] == pytest.approx(compression, rel=0.1)


def test_cheaper_values_leave_more_of_them_and_a_larger_compression_fewer(dense):
    table = pruning.RIVALS.keys()
    found = rivals.kept_at(dense, list(table), [2.0, 8.0, 16.0]).set_index(["rival", "compression"]).kept
    assert found["ATMC-8", 16.0] > found["ALR", 16.0] > found["AP", 16.0]
    assert (found.xs(8.0, level="compression") > found.xs(16.0, level="compression")).all()
    assert ("ATMC-8", 2.0) not in found, "with all of its weights its file is smaller"
    assert "DA" not in found.index.get_level_values("rival")


@pytest.mark.parametrize(
    ("compression", "words"), [(1.0, "above 1"), (float("nan"), "above 1"), (1e5, r"below \d+.*biases, BatchNorm")]
)
def test_no_such_compression(dense, compression, words):
    with pytest.raises(ValueError, match=words):
        same_size.nonzeros(dense, compression, bits=None)


def test_what_is_left_alone_counts_as_dense():
    grouped = narrow("MobileNetV2")
    with pytest.raises(ValueError, match="layers that are left alone take the rest"):
        same_size.nonzeros(grouped, 1000, bits=None)
    assert same_size.nonzeros(grouped, 2, bits=None) < cost.weight_count(grouped) / 2


def test_one_row_for_each_network_with_its_size_and_accuracies(compared, plan):
    table, networks = compared
    assert list(zip(table.method, table.kept, strict=True)) == list(networks)
    assert table.compression.tolist() == pytest.approx(
        [float("nan"), 8, 32, float("nan"), float("nan"), 8, 32], nan_ok=True
    )
    sized = table.dropna(subset="compression")
    assert (sized.file_ratio / sized.compression).between(0.8, 1.2).all()
    scores = table[[name for name in table if name.endswith("_accuracy")]]
    assert scores.columns.tolist() == ["clean_accuracy", "robust_accuracy", "fgsm_accuracy", "wrm_accuracy"]
    assert scores.stack().between(0, 1).all()
    assert (table.robust_accuracy <= table.clean_accuracy).all()
    assert set(table.images) == {plan.images.title}


def test_how_far_wrm_went(plan):
    model = narrow("SmallCNN")
    found = under_attacks.under_attacks({("DA", 1.0): model}, plan, gamma=0.0, steps=3)
    assert found.wrm_linf_255[0] == found.wrm_l2[0] == 0
    moved = under_attacks.Moved(lambda model, x, y: x + torch.tensor([3.0, 4.0]).view(1, 1, 1, 2))
    moved(model, torch.zeros(5, 1, 1, 2), torch.zeros(5))
    assert (moved.mean(2), moved.mean(float("inf"))) == (5.0, 4.0)


def made_up(**differences) -> pandas.DataFrame:
    """Rows of three seeds, in which each method differs from DA, whose accuracy is .5."""
    rows = []
    for seed, spread in enumerate((-0.002, 0.0, 0.002)):
        rows.append({"method": "DA", "kept": 1.0, "compression": None, "robust_accuracy": 0.5 - spread, "seed": seed})
        for method, difference in differences.items():
            shift = spread * (2 if method == "ATMC_8" else 1)
            row = {"method": method.replace("_", "-"), "robust_accuracy": 0.5 + difference + shift, "seed": seed}
            rows += [row | {"kept": 0.1, "compression": None}, row | {"kept": 0.2, "compression": 16.0}]
    return pandas.DataFrame(rows).astype({"compression": float})


@pytest.mark.parametrize(
    ("differences", "verdicts"),
    [
        ({"ATMC_8": 0.1, "ATMC_32": 0.05, "NAP": -0.3}, ["holds"] * 4),
        ({"ATMC_8": -0.2, "ATMC_32": 0.05, "NAP": 0.3}, ["does not hold"] * 4),
        ({"ATMC_8": -0.02, "ATMC_32": 0.0, "NAP": 0.0}, ["cannot be told"] * 4),
    ],
)
def test_what_is_left_of_the_claims(differences, verdicts):
    rows = made_up(**differences)
    if verdicts[0] == "cannot be told":
        rows["robust_accuracy"] += rows.seed * (rows.method == "ATMC-8") * 0.05 - (rows.method == "ATMC-8") * 0.05
        rows["robust_accuracy"] += (1 - rows.seed) * (rows.method == "NAP") * 0.05
    found = pruning.claims(rows)
    assert found.verdict.tolist() == verdicts
    assert found["at"].tolist() == ["compression 16", "ratio 0.1", "compression 16", "compression 16"]
    assert (found.seeds == 3).all()


def test_a_claim_fails_by_the_rival_that_shows_it():
    """The strongest on average differs too much between seeds to show anything; the next one is surely better."""
    accuracies = {
        "ATMC-8": [0.40, 0.41, 0.40, 0.41],
        "AP": [0.30, 0.75, 0.30, 0.75],
        "Al0": [0.45, 0.461, 0.452, 0.459],
    }
    rows = pandas.DataFrame(accuracies).rename_axis("seed").reset_index()
    rows = rows.melt("seed", var_name="method", value_name="robust_accuracy").assign(kept=0.03, compression=16.0)
    (found,) = pruning.claims(rows).to_dict("records")
    assert (found["verdict"], found["compared"]) == ("does not hold", "ATMC-8 - Al0")
    assert found["difference"] == pytest.approx(-0.0505)
    assert found["low"] < found["difference"] < found["high"] < 0


def test_a_compression_that_atmc_does_not_have_is_left_out():
    rows = made_up(ATMC_8=0.1, ATMC_32=0.05, NAP=-0.3)
    more = rows[(rows.method != "ATMC-8") & (rows.compression == 16)].assign(compression=2.0, kept=0.5)
    found = pruning.claims(pandas.concat([rows, more]))
    assert found[found["at"] == "compression 2"].claim.tolist() == ["natural pruning loses robustness"]


def test_one_seed_tells_nothing():
    rows = made_up(ATMC_8=0.1, ATMC_32=0.05, NAP=-0.3)
    found = pruning.claims(rows[rows.seed == 0])
    assert set(found.verdict) == {"cannot be told"}
    assert pruning.claims(rows[rows.method == "DA"]).empty


def test_one_line_per_rival_against_the_size_of_its_files(compared):
    table, _ = compared
    both = pandas.concat([table.assign(seed=seed) for seed in (0, 1)])
    figure = figures.accuracy_against_size(both)
    assert [line.name for line in figure.data] == ["NAP", "ATMC-8", "before"] * 2
    expected = sorted(table[table.method == "NAP"].file_ratio)
    assert list(figure.data[0].x) == pytest.approx(expected)
    assert figure.layout.xaxis.type == "log"
    assert tuple(name for name in pruning.RIVALS if name != "DA" and "svd" not in name) == figures.RIVALS


def test_forms_of_the_chain(dense, plan):
    """The paper's learning rates fall at milestones."""
    bench = rivals._Bench(dense, plan, "paper")
    phase = plan.phase("finetune", "x")
    recipe = bench._recipe(phase, 200, "weights")
    assert [recipe.lr_at(epoch) for epoch in (0, 29, 30, 60, 120)] == pytest.approx([0.01, 0.01, 1e-3, 1e-4, 1e-6])
    assert bench._recipe(phase, 200, "dense").lr_at(81) == pytest.approx(0.005)
    assert bench._recipe(phase, 150, "values").lr_at(149) == 0.005
    short = dataclasses.replace(bench._recipe(phase, 10, "factors"), schedule="cosine")
    assert rivals._Bench(dense, plan, "short")._recipe(phase, 10, "factors") == short
    with pytest.raises(ValueError, match="expected form short | paper"):
        pruning.joint(dense, ["AP"], [0.5], plan, form="long")


def test_constants_agree():
    assert comparison.OURS in pruning.RIVALS
    assert set(rivals.STAGES) == {"dense", "weights", "factors", "values"}
