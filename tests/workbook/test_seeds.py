"""Runs of several seeds: their rows together, or one row per setting."""

import pandas
import pytest

from rqlib.workbook import recording, seeds, with_other_seeds
from tests.workbook.runs import finish, start

SETTINGS = ["epsilon_255", "pretrained_for"]
CONDITIONS = [(method, kept) for method in ("dense", "lwm", "hydra") for kept in (0.1, 0.01)]


def pruned(methods=("dense", "lwm", "hydra"), pretrained_for=None, **values) -> pandas.DataFrame:
    """The rows of a finished run of 06_prune."""
    run = start("06_prune", **values)
    for method, kept in CONDITIONS:
        if method in methods:
            run.record(method=method, kept=kept, pretrained_for=pretrained_for)
    run.finish()
    return run.frame()


def test_the_rows_of_other_seeds_are_those_of_the_same_settings():
    mine = pruned(methods=["dense", "lwm"], seed=0)
    pruned(seed=1)
    pruned(seed=2, epsilon_255=4.0)
    pruned(seed=3, pretrained_for="natural")
    found = with_other_seeds(mine, "06_prune", [*SETTINGS, "not a column"])
    assert found.seed.tolist() == [0] * 4 + [1] * 6
    assert set(found.epsilon_255) == {8.0}


def test_of_the_same_seed_the_methods_that_a_run_lacks():
    mine = pruned(methods=["hydra"], seed=0, epochs=1)
    pruned(seed=0, epochs=2)
    found = with_other_seeds(mine, "06_prune", SETTINGS)
    assert sorted(zip(found.method, found.kept, strict=True)) == sorted(CONDITIONS)
    assert found[found.method == "hydra"].epochs.tolist() == [1, 1], "those of this run"


def test_without_a_finished_run_the_rows_stay_alone():
    run = start("06_prune")
    run.record(method="lwm", kept=0.1)
    rows = run.frame()
    assert with_other_seeds(rows, "06_prune", SETTINGS) is rows


def test_mean_and_spread_over_seeds():
    for model, seed, accuracy in [("LeNet", 0, 0.5), ("LeNet", 1, 0.7), ("SmallCNN", 0, 0.9)]:
        finish("01_train", accuracy, model=model, seed=seed)
    table = seeds.over_seeds("01_train").set_index("model")
    assert list(table.seeds) == [2, 1]
    assert table.accuracy["LeNet"] == pytest.approx(0.6)
    assert table.accuracy_std["LeNet"] == pytest.approx(0.2 / 2**0.5)
    assert pandas.isna(table.accuracy_std["SmallCNN"])
    assert list(table)[-3:] == ["machine", "computed_in", "torch"]


def test_runs_without_a_seed_count_as_one():
    run = recording.Run("03_fit", {"__annotations__": {"source": str}, "source": "02_quantize"})
    run.record(predictor="mean loss", held_out_r2=0.25)
    run.finish()
    table = seeds.over_seeds("03_fit")
    assert table[["predictor", "seeds", "held_out_r2"]].to_numpy().tolist() == [["mean loss", 1, 0.25]]
