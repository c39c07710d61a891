import re

import numpy
import pandas
import pytest
from pandas import DataFrame

from rqlib.prediction import features
from tests import published


def test_published_names_become_ours_and_percent_becomes_a_share():
    rows = DataFrame({"model": "a", "format": ["INT_4", "INT_8"], "js_flops": [50.0, 5.0], "js_param": [20.0, 1.0],
                      "fp32_accuracy": 0.8, "accuracy": [0.4, 0.8]})  # fmt: skip
    table = features.table(rows)
    assert table.js_legacy_macs.tolist() == [0.5, 0.05]
    assert table.js_legacy_params.tolist() == [0.2, 0.01]
    assert table.accuracy_loss.tolist() == [0.5, 0.0]
    assert table.js_legacy_macs_normalized.tolist() == pytest.approx([1.0, 0.1])
    assert rows.columns.tolist() == ["model", "format", "js_flops", "js_param", "fp32_accuracy", "accuracy"]


def test_each_run_is_divided_by_its_own_int4_and_the_float_network_is_left_out():
    rows = published.made_up(models=2)
    twice = rows.assign(run=rows.run + "b", js_macs=rows.js_macs * 7)
    whole = rows.head(1).assign(format="FP32", accuracy=numpy.nan)
    table = features.table(pandas.concat([whole, rows, twice]))
    assert len(table) == 2 * len(rows)
    assert (table[table.format == "INT_4"].js_macs_normalized == 1).all()
    first, second = table.js_macs_normalized[: len(rows)], table.js_macs_normalized[len(rows) :]
    assert first.tolist() == pytest.approx(second.tolist())


def test_without_int4_there_is_no_normalized_figure_but_a_measured_one_is_kept():
    rows = published.made_up(models=1)
    rows = rows[rows.format != "INT_4"]
    assert features.table(rows).js_macs_normalized.isna().all()
    assert features.table(rows.assign(js_macs_normalized=2.0)).js_macs_normalized.eq(2).all()


def test_names_put_the_loss_on_pseudo_data_first():
    lost = {"pseudo_accuracy_loss": 0.1, "pseudo_accuracy_loss_boundary": 0.2}
    table = features.table(published.made_up().assign(logit_error=1.0, **lost))
    similar = ["js_macs_normalized", "js_params_normalized", "js_macs", "js_params"]
    assert features.names(table) == ["pseudo_accuracy_loss_boundary", "pseudo_accuracy_loss", *similar]
    assert features.label("js_macs_normalized") == "JS weighted by MACs / that of INT_4"
    assert features.short("pseudo_accuracy_loss_adjusted") == "pseudo-loss (adjusted)"


def test_the_best_images_of_a_network_are_refined_ones_or_those_between_classes():
    rows = published.made_up(2).assign(pseudo_accuracy_loss_boundary=0.3)
    refined = (rows.model == "net0").map({True: 0.2, False: None})
    table = features.table(rows.assign(pseudo_accuracy_loss_refined=refined))
    assert table.groupby("model").pseudo_accuracy_loss_best.first().to_dict() == {"net0": 0.2, "net1": 0.3}
    assert features.names(table)[:2] == ["pseudo_accuracy_loss_best", "pseudo_accuracy_loss_boundary"]
    assert "pseudo_accuracy_loss_refined" not in features.names(table)
    assert "pseudo_accuracy_loss_best" not in features.table(rows)


def test_the_mean_loss_is_of_those_hard_images_that_a_network_has():
    rows = published.made_up(3).assign(pseudo_accuracy_loss=0.0, pseudo_accuracy_loss_boundary=0.3)
    assert "pseudo_accuracy_loss_mean" not in features.table(rows)
    refined, adjusted = rows.model.map({"net0": 0.5}), rows.model.map({"net0": 0.1, "net1": 0.1})
    rows = rows.assign(pseudo_accuracy_loss_adjusted=adjusted, pseudo_accuracy_loss_refined=refined)
    table = features.table(rows)
    means = table.groupby("model").pseudo_accuracy_loss_mean.first()
    assert means.dropna().to_dict() == pytest.approx({"net0": 0.3, "net1": 0.2})
    assert numpy.isnan(means["net2"]), "of one kind there is no mean"
    assert features.short("pseudo_accuracy_loss_mean") == "pseudo-loss (mean)"
    assert "pseudo_accuracy_loss_mean" in features.names(table)


def test_losses_on_pseudo_data_are_joined_and_the_count_is_printed(capsys):
    rows = DataFrame({"model": ["a", "a", "b"], "format": ["INT_4", "INT_8", "INT_4"], "accuracy_loss": [0.5, 0, 0.4]})
    table = features.table(rows, published.robust())
    assert table.pseudo_accuracy_loss.isna().tolist() == [False, True, True]
    assert "pseudo_accuracy_loss: measured for 1 of 3 rows" in capsys.readouterr().out


def test_losses_on_pseudo_data_that_rows_have_are_kept_where_no_others_are_given():
    rows = DataFrame({"model": ["a", "a", "b"], "format": ["INT_4", "INT_8", "INT_4"], "accuracy_loss": [0.5, 0, 0.4]})
    table = features.table(rows.assign(pseudo_accuracy_loss=[0.1, 0.2, 0.3]), published.robust())
    assert table.pseudo_accuracy_loss.tolist() == pytest.approx([0.75, 0.2, 0.3])
    others = features.table(rows, published.robust().assign(model="c"))
    assert "pseudo_accuracy_loss" not in others, "of no network here"


def test_spreads_over_seeds_predict_nothing():
    table = features.table(published.made_up().assign(js_macs_std=0.1))
    assert "js_macs_std" not in features.names(table)


def test_complete_prints_what_it_drops(capsys):
    frame = DataFrame({"a": [1.0, numpy.nan, 3.0], "b": [numpy.nan, numpy.nan, 1.0]})
    assert len(features.complete(frame, ["a", "b"])) == 1
    assert capsys.readouterr().out == "dropped 2 of 3 rows without a value (a 1, b 2)\n"
    assert len(features.complete(frame[["a"]].dropna(), ["a"])) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda rows: features.table(rows.assign(accuracy=80.0)), "expected accuracy as a fraction in [0, 1], got 80"),
        (lambda rows: features.table(rows.drop(columns="format")), "the table: expected columns model, format"),
        (
            lambda rows: features.table(pandas.concat([rows, rows[1:2]])),
            "expected one row per network and format, got 1 more than once (first: run 02/net0, format INT_3)",
        ),
        (
            lambda rows: features.table(
                rows.drop(columns="seed"),
                pandas.concat([published.robust().assign(model="net0", seed=seed) for seed in (0, 1)]),
            ),
            "expected losses on pseudo-data of one network net0, got several in format INT_4",
        ),
        (lambda rows: features.complete(rows.assign(b=None)[:1], ["b"]), "rows with values in b, got none (b 1)"),
    ],
)
def test_bad_tables_say_what_was_expected(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(published.made_up(models=1))


@published.needed
def test_the_published_tables_are_whole():
    table = published.table()
    assert table.groupby("model").size().tolist() == [43] * 9
    expected = (table.float_accuracy - table.accuracy) / table.float_accuracy
    assert table.accuracy_loss.tolist() == pytest.approx(expected.tolist(), abs=0.01)
    assert table[features.names(table)].notna().sum().tolist() == [373, 372, 387, 387, 387, 387]


def test_a_table_need_not_say_what_its_formats_are():
    rows = published.made_up(2)
    table = features.table(rows.drop(columns=["kind", "bits"]))
    assert table.kind.tolist() == rows.kind.tolist()
    assert table.bits.tolist() == rows.bits.tolist()
