from functools import partial

import numpy
import pandas
import pytest
import scipy.stats
import torch

from rqlib import attacks, data, generator, measures, quantization
from rqlib.core import runtime
from rqlib.core.projections import Linf
from rqlib.measures import evaluate
from rqlib.robustness import quantized_networks
from tests import generated, published

BALL = Linf(8 / 255)
ATTACKS = {"pgd": partial(attacks.pgd, ball=BALL, step_size=BALL.epsilon / 2, steps=3, active_set=True)}


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def sets(count: int = 60) -> dict[str, data.Split]:
    real = data.Split(*(part[:count] for part in data.load("digits").test))
    return {"test": real, "trained": generator.sample(generated.trained(), count)}


def test_accuracies_are_those_of_the_quantized_networks():
    both = sets()
    images = both["trained"].images
    rows = quantized_networks.study(generated.teacher(), ["INT_3", "FLOAT_3_E1", "INT_8"], images, both, ATTACKS)
    assert rows.format.tolist() == ["FP32", "INT_3", "FLOAT_3_E1", "INT_8"]
    network = quantization.ptq(generated.teacher(), "INT_3", images)
    for name, split in both.items():
        assert rows[f"{name}_clean"][1] == evaluate.accuracy(network, *split)
        assert rows[f"{name}_pgd"][1] == evaluate.accuracy(network, *split, attack=ATTACKS["pgd"])
        assert rows[f"{name}_clean"][0] == evaluate.accuracy(generated.teacher(), *split)
    assert rows.iloc[1, 1:].tolist() == rows.iloc[2, 1:].tolist(), "formats of equal values"
    assert (rows.test_pgd <= rows.test_clean).all()


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    both, path = sets(20), tmp_path / "study.pt"
    study = partial(quantized_networks.study, generated.teacher(), calibration_images=both["test"].images)
    study(["INT_4"], sets=both, attacks=ATTACKS, checkpoint=path)
    scored = []
    accuracy = evaluate.accuracy
    monkeypatch.setattr(measures, "accuracy", lambda *args, **more: scored.append(1) or accuracy(*args, **more))
    again = {"pgd": partial(ATTACKS["pgd"].func, **ATTACKS["pgd"].keywords)}
    rows = study(["INT_4", "INT_8"], sets=both, attacks=again, checkpoint=path)
    assert len(scored) == 4, "one format on two sets, clean and attacked"
    assert len(rows) == 3
    with pytest.raises(ValueError, match="belongs to another study: attack pgd"):
        study(["INT_4"], sets=both, attacks={"pgd": partial(again["pgd"], steps=9)}, checkpoint=path)


def wide() -> pandas.DataFrame:
    return pandas.DataFrame({
        "format": ["FP32", "INT_4", "INT_8"], "model": "net",
        "test_clean": [0.8, 0.4, 0.8], "trained_clean": [1.0, 0.5, 0.9], "adjusted_clean": [0.9, 0.9, 0.9],
        "test_pgd": [0.4, 0.1, 0.4], "trained_pgd": [0.5, 0.25, 0.5], "adjusted_pgd": [0.0, 0.0, 0.0],
    })  # fmt: skip


def test_relative_accuracies_by_hand(capsys):
    rows = quantized_networks.published(wide())
    assert rows.generator.tolist() == ["trained"] * 3 + ["adjusted"] * 3
    frame = quantized_networks.relative(rows)
    assert "2 of 8 rows left out: the float network's accuracy there is 0" in capsys.readouterr().out
    found = frame.set_index(["generator", "attack", "format"])
    assert found.loc[("trained", "clean", "INT_4"), ["test", "pseudo"]].tolist() == [0.5, 0.5]
    assert found.loc[("trained", "clean", "INT_8"), ["test", "pseudo"]].tolist() == [1.0, 0.9]
    assert found.loc[("trained", "pgd", "INT_4"), ["test", "pseudo"]].tolist() == [0.25, 0.5]
    assert ("adjusted", "pgd") not in {key[:2] for key in found.index}


def test_formats_that_were_not_attacked_and_other_columns_are_left_out(capsys):
    rows = wide().assign(test_images=500, test_clean_std=0.1)
    rows.loc[rows.format == "INT_8", [name for name in rows if name.endswith("_pgd")]] = None
    frame = quantized_networks.relative(quantized_networks.published(rows))
    assert frame[frame.attack == "pgd"].format.tolist() == ["INT_4"]
    assert set(frame.attack) == {"clean", "pgd"}
    assert "1 of 6 rows left out" in capsys.readouterr().out


def test_networks_of_one_name_are_told_apart_by_their_runs():
    rows = pandas.concat([wide().assign(run="natural"), wide().assign(run="adversarial", test_clean=0.5)])
    frame = quantized_networks.relative(quantized_networks.published(rows))
    found = frame[(frame.attack == "clean") & (frame.generator == "trained") & (frame.format == "INT_4")]
    assert found.set_index("run").test.to_dict() == {"natural": 0.5, "adversarial": 1.0}


def test_agreement_is_the_textbook():
    rng = numpy.random.default_rng(0)
    pseudo = rng.uniform(size=50)
    test = 0.2 + 0.5 * pseudo + 0.05 * rng.normal(size=50)
    frame = pandas.DataFrame({"generator": "trained", "attack": "pgd", "test": test, "pseudo": pseudo})
    row = quantized_networks.agreement(frame).iloc[0]
    assert row.linear_r2 == pytest.approx(scipy.stats.linregress(pseudo, test).rvalue ** 2)
    assert row.identity_r2 == pytest.approx(1 - ((test - pseudo) ** 2).sum() / ((test - test.mean()) ** 2).sum())
    assert row.spearman == pytest.approx(scipy.stats.spearmanr(pseudo, test).statistic)
    assert row.mae == pytest.approx(abs(test - pseudo).mean())
    assert row.rows == 50


@published.needed
def test_the_published_table_says_what_it_said():
    frame = quantized_networks.relative(pandas.read_csv(published.ROBUST))
    score = quantized_networks.agreement(frame).set_index(["generator", "attack"]).identity_r2
    assert score["trained", "clean"] == pytest.approx(0.87, abs=0.01)
    assert score["trained", "pgd"] == pytest.approx(0.0, abs=0.02)
    by_model = quantized_networks.agreement(frame, by=["generator", "attack", "model"])
    assert len(by_model) == 2 * 3 * 9


def test_bad_tables():
    rows = quantized_networks.published(wide())
    with pytest.raises(ValueError, match="expected a row FP32 of every network"):
        quantized_networks.relative(rows[rows.format != "FP32"])
    with pytest.raises(ValueError, match="expected rows with columns generator, pseudo_clean"):
        quantized_networks.relative(wide().drop(columns="model"))


def test_no_calibration_images():
    with pytest.raises(ValueError, match="expected calibration images, got none"):
        quantized_networks.study(generated.teacher(), ["INT_8"], torch.empty(0, 3, 32, 32), sets(5), {})
