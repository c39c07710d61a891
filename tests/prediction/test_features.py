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


def test_each_run_is_divided_by_its_own_int4():
    rows = published.made_up(models=2)
    twice = rows.assign(run=rows.run + "b", js_macs=rows.js_macs * 7)
    table = features.table(DataFrame({name: [*rows[name], *twice[name]] for name in rows}))
    int4 = table[table.format == "INT_4"]
    assert (int4.js_macs_normalized == 1).all()
    assert table.js_macs_normalized[: len(rows)].tolist() == pytest.approx(
        table.js_macs_normalized[len(rows) :].tolist()
    )


def test_without_int4_there_is_no_normalized_figure_but_a_measured_one_is_kept():
    rows = published.made_up(models=1)
    rows = rows[rows.format != "INT_4"]
    assert features.table(rows).js_macs_normalized.isna().all()
    assert features.table(rows.assign(js_macs_normalized=2.0)).js_macs_normalized.eq(2).all()


def test_names_put_the_loss_on_pseudo_data_first():
    table = features.table(published.made_up().assign(pseudo_accuracy_loss=0.1, logit_error=1.0))
    names = ["pseudo_accuracy_loss", "js_macs_normalized", "js_params_normalized", "js_macs", "js_params"]
    assert features.names(table) == names
    assert features.label("js_macs_normalized") == "JS weighted by MACs / that of INT_4"
    assert features.short("pseudo_accuracy_loss_adjusted") == "pseudo-loss (adjusted)"


def robust() -> DataFrame:
    frame = DataFrame({"generator": ["trained"] * 2 + ["adjusted"] * 2, "format": ["FP32", "INT_4"] * 2})
    return frame.assign(model="a", pseudo_clean=[0.8, 0.2, 0.5, 0.5])


def test_pseudo_losses_by_hand():
    found = features.pseudo_losses(robust())
    assert found.to_dict("records") == [
        {
            "model": "a",
            "format": "INT_4",
            "pseudo_accuracy_loss_adjusted": 0.0,
            "pseudo_accuracy_loss": pytest.approx(0.75),
        }
    ]


def test_pseudo_losses_are_joined_and_the_count_is_printed(capsys):
    rows = DataFrame(
        {"model": ["a", "a", "b"], "format": ["INT_4", "INT_8", "INT_4"], "accuracy_loss": [0.5, 0.0, 0.4]}
    )
    table = features.table(rows, features.pseudo_losses(robust()))
    assert table.pseudo_accuracy_loss.isna().tolist() == [False, True, True]
    assert "pseudo_accuracy_loss: measured for 1 of 3 rows" in capsys.readouterr().out


def test_complete_prints_what_it_drops(capsys):
    frame = DataFrame({"a": [1.0, numpy.nan, 3.0], "b": [numpy.nan, numpy.nan, 1.0]})
    assert len(features.complete(frame, ["a", "b"])) == 1
    assert capsys.readouterr().out == "dropped 2 of 3 rows without a value (a 1, b 2)\n"
    assert len(features.complete(frame[["a"]].dropna(), ["a"])) == 2
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"expected rows with values in b, got none \(b 1\)"):
        features.complete(frame[:1], ["b"])


def test_bad_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a table .* found no file"):
        features.read_csv(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("modle,format,accuracy\nx,INT_4,0.5\n")
    with pytest.raises(ValueError, match=r"a.csv: expected columns model, .* none named model; .*did you mean 'modle'"):
        features.read_csv(tmp_path / "a.csv")
    rows = published.made_up(models=1)
    with pytest.raises(
        ValueError, match=r"expected accuracy as a fraction in \[0, 1\], got 8.*; divide the column by 100"
    ):
        features.table(rows.assign(accuracy=rows.accuracy * 100))
    with pytest.raises(ValueError, match="expected one row a network and format, got 1 more than once .*INT_3"):
        features.table(DataFrame({name: [*rows[name], rows[name][1]] for name in rows}))
    with pytest.raises(ValueError, match="expected a row FP32 of every network, got none for a"):
        features.pseudo_losses(robust().assign(format="INT_4").drop_duplicates(["generator"]))
    with pytest.raises(ValueError, match="unknown generator 'adjust'"):
        features.pseudo_losses(robust().replace("adjusted", "adjust"))
    with pytest.raises(ValueError, match="expected pseudo_clean as a fraction"):
        features.pseudo_losses(robust().assign(pseudo_clean=80.0))


@published.needed
def test_the_published_tables_are_whole():
    table = published.table()
    assert table.groupby("model").size().tolist() == [43] * 9
    assert table.accuracy_loss.to_numpy() == pytest.approx(
        ((table.float_accuracy - table.accuracy) / table.float_accuracy).to_numpy(), abs=0.01
    )
    assert table[features.names(table)].notna().sum().tolist() == [373, 372, 387, 387, 387, 387]


def test_the_float_network_is_no_row_to_predict():
    frame = published.made_up(2)
    whole = frame.head(1).assign(format="FP32", accuracy=numpy.nan)
    assert features.table(pandas.concat([whole, frame])).equals(features.table(frame))


def test_losses_between_classes_come_first():
    frame = published.made_up(2).assign(pseudo_accuracy_loss=0.1, pseudo_accuracy_loss_boundary=0.2)
    assert features.names(frame)[:2] == ["pseudo_accuracy_loss_boundary", "pseudo_accuracy_loss"]
    assert features.short("pseudo_accuracy_loss_boundary") == "pseudo-loss (boundary)"
