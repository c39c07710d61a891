"""The forecast from the tables that come with the workbook: every network of theirs as if it were unknown."""

import functools

import pandas
import pytest

from rqlib import prediction
from rqlib.core import files
from rqlib.prediction import ranking, shipped
from tests import published


@functools.cache
def losses() -> pandas.DataFrame:
    rows = prediction.reference()
    return prediction.table(prediction.measured_with(rows, prediction.setting(rows)))


def test_tables_are_read_and_joined_and_it_is_said_which(capsys):
    rows = prediction.reference("02_quantize")
    assert "no finished run of 02_quantize: the shipped table outputs/reference/quantize.csv is used" in (
        capsys.readouterr().out
    )
    own = pandas.read_csv(files.project_root() / "outputs/reference/quantize.csv")
    assert len(rows) == len(own)
    assert rows.accuracy_loss.equals(own.accuracy_loss)
    assert rows.pseudo_accuracy_loss_boundary.notna().any()
    assert len(prediction.table(prediction.reference("04_generator")))


def test_one_measured_network_is_too_few_to_judge_by(capsys):
    two = published.made_up(2)
    assert prediction.enough(two) is two
    assert prediction.enough(published.made_up(1)).equals(prediction.reference("02_quantize"))
    assert "no runs on two networks of 02_quantize: the shipped table" in capsys.readouterr().out


def test_every_network_of_the_table_bears_its_own_title_and_its_plain_features():
    table = losses()
    assert table.groupby(["title", "format"]).size().eq(1).all()
    assert table.title.nunique() >= 5
    assert table[["weighted_layers", "weight_count", "batchnorm_share"]].notna().all(axis=None)


def test_widened_intervals_hold_more_of_what_networks_left_out_lose():
    """Predicted from weights alone, a few good predictors standing for all."""
    table = losses().drop(columns=[name for name in losses() if name.startswith("pseudo_")])
    chosen = [one for one in ranking.candidates(table) if one.family == "isotonic" and one.features[0][-4:] == "ized"]
    judged = ranking.leave_out(table, chosen).judged(table)
    wide = judged.table()
    narrow = type(judged)(judged.frame.drop(columns="distance"), judged.target, judged.group, judged.cross).table()
    inside = wide.distance == 0
    assert wide[inside].lower.equals(narrow[inside].lower)
    assert (wide.upper >= narrow.upper.clip(upper=1)).all()
    assert (wide.upper > narrow.upper)[~inside & (wide.upper < 1)].all()
    assert prediction.coverage(wide) > prediction.coverage(narrow)
    assert prediction.coverage(wide) >= 0.85
    rows = prediction.judged_by_network(wide)
    assert rows.coverage[rows.distance > 0].min() > 0.6


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: prediction.reference("05_robust"), ValueError, "unknown source '05_robust'"),
        (lambda: shipped.reference("04_generator"), FileNotFoundError, "expected finished runs of 04_generator, or "),
    ],
)
def test_errors(tmp_path, monkeypatch, call, error, words):
    monkeypatch.setattr(files, "project_root", lambda: tmp_path)
    with pytest.raises(error, match=words):
        call()
