import re

import numpy
import pandas
import pytest
import scipy.stats

from rqlib import prediction
from tests import published
from tests.published import wide


def test_relative_accuracies_by_hand(capsys):
    frame = prediction.relative(wide())
    assert "2 of 8 rows left out: the float network's accuracy there is 0" in capsys.readouterr().out
    found = frame.set_index(["generator", "attack", "format"])
    assert found.loc[("trained", "clean", "INT_4"), ["test", "pseudo"]].tolist() == [0.5, 0.5]
    assert found.loc[("trained", "clean", "INT_8"), ["test", "pseudo"]].tolist() == [1.0, 0.9]
    assert found.loc[("trained", "pgd", "INT_4"), ["test", "pseudo"]].tolist() == [0.25, 0.5]
    assert ("adjusted", "pgd") not in {key[:2] for key in found.index}


def test_formats_that_were_not_attacked_and_other_columns_are_left_out(capsys):
    rows = wide().assign(test_images=500, test_clean_std=0.1)
    rows.loc[rows.format == "INT_8", [name for name in rows if name.endswith("_pgd")]] = None
    frame = prediction.relative(rows)
    assert frame[frame.attack == "pgd"].format.tolist() == ["INT_4"]
    assert set(frame.attack) == {"clean", "pgd"}
    assert "1 of 6 rows left out" in capsys.readouterr().out


def test_networks_of_one_name_are_told_apart_by_their_runs():
    rows = pandas.concat([wide().assign(run="natural"), wide().assign(run="adversarial", test_clean=0.5)])
    frame = prediction.relative(rows)
    found = frame[(frame.attack == "clean") & (frame.generator == "trained") & (frame.format == "INT_4")]
    assert found.set_index("run").test.to_dict() == {"natural": 0.5, "adversarial": 1.0}


def test_agreement_is_the_textbook():
    rng = numpy.random.default_rng(0)
    pseudo = rng.uniform(size=50)
    test = 0.2 + 0.5 * pseudo + 0.05 * rng.normal(size=50)
    frame = pandas.DataFrame({"generator": "trained", "attack": "pgd", "test": test, "pseudo": pseudo})
    row = prediction.agreement(frame).iloc[0]
    assert row.linear_r2 == pytest.approx(scipy.stats.linregress(pseudo, test).rvalue ** 2)
    assert row.identity_r2 == pytest.approx(1 - ((test - pseudo) ** 2).sum() / ((test - test.mean()) ** 2).sum())
    assert row.spearman == pytest.approx(scipy.stats.spearmanr(pseudo, test).statistic)
    assert row.mae == pytest.approx(abs(test - pseudo).mean())
    assert row.rows == 50


def test_what_sampling_alone_explains():
    rng = numpy.random.default_rng(0)
    truth = numpy.tile([0.9, 0.6, 0.3, 0.99], 500)
    images, right = 200, 100
    sides = {side: rng.binomial(right, truth) / images for side in ("test_pgd", "trained_pgd")}
    clean = {"test_clean": 0.9 * truth, "trained_clean": 0.9 * truth}
    rows = pandas.DataFrame({"format": [f"F{index}" for index in range(len(truth))], **sides, **clean})
    whole = {"format": "FP32", "test_pgd": 0.5, "trained_pgd": 0.5, "test_clean": 0.9, "trained_clean": 0.9}
    rows = pandas.concat([rows, pandas.DataFrame([whole])]).assign(model="net", robust_images=images, num_classes=10)
    under = prediction.agreement(prediction.relative(rows)).set_index("attack").loc["pgd"]
    assert under.explained == pytest.approx(1, abs=0.1), "nothing else makes these sides differ"
    assert under.sampling == pytest.approx(((truth * (1 - truth)).mean() * 2 / right) ** 0.5, rel=0.1)
    assert under.guessing == 0


def test_no_r2_where_there_is_nothing_to_predict_and_none_of_formats_that_guess():
    kept = {"INT_8": 1.0, "INT_6": 0.99, "INT_5": 0.98, "INT_2": 0.12}
    rows = pandas.DataFrame({"format": ["FP32", *kept], "test_clean": [0.8, *(0.8 * one for one in kept.values())]})
    rows = rows.assign(trained_clean=[0.9, 0.9, 0.9, 0.9, 0.09], model="net", robust_images=100, num_classes=10)
    frame = prediction.relative(rows)
    assert frame.set_index("format").at_chance.to_dict() == {"INT_8": 0, "INT_6": 0, "INT_5": 0, "INT_2": 1}
    found = prediction.agreement(frame).iloc[0]
    assert found.identity_r2 > 0.99
    assert numpy.isnan(found.above_chance_r2), "three formats within two points: 100 images cannot tell them apart"
    assert found.guessing == 1


def test_a_network_without_one_of_the_generators_has_no_rows_of_it():
    rows = pandas.concat([wide(), wide().assign(model="other", adjusted_clean=None, adjusted_pgd=None)])
    frame = prediction.relative(rows)
    assert set(frame[frame.model == "other"].generator) == {"trained"}
    assert set(frame[frame.model == "net"].generator) == {"trained", "adjusted"}


@published.needed
def test_the_published_table_says_what_it_said():
    frame = prediction.relative(prediction.read_table(published.ROBUST, ["model", "format"]))
    score = prediction.agreement(frame).set_index(["generator", "attack"]).identity_r2
    assert score["trained", "clean"] == pytest.approx(0.87, abs=0.01)
    assert score["trained", "pgd"] == pytest.approx(0.0, abs=0.02)
    by_model = prediction.agreement(frame, by=["generator", "attack", "model"])
    assert len(by_model) == 2 * 3 * 9


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (wide().query("format != 'FP32'"), "expected a row FP32 of every network"),
        (wide()[["format", "test_clean"]], "got none named generator, pseudo_clean"),
    ],
)
def test_bad_tables_say_what_was_expected(rows, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        prediction.relative(rows)
