import re

import pandas
import pytest

from rqlib.prediction import published as adapter
from tests import published


def test_wide_rows_get_a_row_for_each_generator():
    rows = adapter.by_generator(published.wide())
    assert rows.generator.tolist() == ["trained"] * 3 + ["adjusted"] * 3
    assert list(rows) == ["format", "model", "test_clean", "pseudo_clean", "test_pgd", "pseudo_pgd", "generator"]
    assert rows.test_clean.tolist() == [0.8, 0.4, 0.8] * 2
    assert rows.pseudo_pgd.tolist() == [0.5, 0.25, 0.5, 0.0, 0.0, 0.0]


def test_other_rows_stay_as_they_are_and_say_whether_networks_were_attacked():
    assert adapter.was_attacked(published.wide())
    long = adapter.by_generator(published.wide())
    for rows, attacked in ((long, True), (published.made_up(1), False), (published.robust(), False)):
        assert adapter.by_generator(rows) is rows
        assert adapter.was_attacked(rows) == attacked


def test_losses_by_hand_and_of_both_forms():
    expected = {"model": "a", "format": "INT_4"}
    expected |= {"pseudo_accuracy_loss_adjusted": 0.0, "pseudo_accuracy_loss": pytest.approx(0.75)}
    assert adapter.losses(published.robust()).to_dict("records") == [expected]
    assert adapter.losses(published.wide()).equals(adapter.losses(adapter.by_generator(published.wide())))


def test_a_table_is_a_file_or_a_run_and_is_found_in_the_folder_of_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_DATA", str(tmp_path))
    rows = published.made_up(1)
    rows.to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "run").mkdir()
    rows.to_parquet(tmp_path / "run" / "rows.parquet")
    for path in ("a.csv", tmp_path / "a.csv", "run", tmp_path / "run", "run/rows.parquet"):
        assert len(adapter.read_table(path)) == 12


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("none.csv", None, FileNotFoundError, "expected a table (CSV, Parquet, or the folder of a finished run)"),
        (
            "a.csv",
            "modle,format,accuracy\nx,INT_4,0.5\n",
            ValueError,
            "a.csv: expected columns model, format, accuracy",
        ),
        ("a.csv", "", ValueError, "a.csv: expected a table (CSV or Parquet), got No columns"),
        ("a.parquet", "text", ValueError, "a.parquet: expected a table (CSV or Parquet), got "),
    ],
)
def test_a_table_that_cannot_be_read_says_what_was_expected(tmp_path, monkeypatch, name, content, error, words):
    monkeypatch.setenv("RQLIB_DATA", str(tmp_path))
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=re.escape(words)):
        adapter.read_table(name)


def test_losses_that_rows_of_04_have_are_kept_for_all_formats():
    rows = published.wide().assign(pseudo_accuracy_loss=[None, 0.25, 0.125], trained_clean=[1.0, None, None])
    assert adapter.losses(rows).to_dict("records") == [
        {"model": "net", "format": "INT_4", "pseudo_accuracy_loss": 0.25},
        {"model": "net", "format": "INT_8", "pseudo_accuracy_loss": 0.125},
    ]


def test_networks_without_a_seed_keep_their_losses():
    rows = published.robust().assign(seed=None)
    assert adapter.losses(rows).pseudo_accuracy_loss.tolist() == pytest.approx([0.75])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[rows.format != "FP32"], "expected a row FP32 of every network, got none for a"),
        (lambda rows: rows.replace("adjusted", "adjust"), "unknown generator 'adjust'"),
        (lambda rows: rows.assign(pseudo_clean=80.0), "expected pseudo_clean as a fraction"),
        (lambda rows: rows.drop(columns="generator"), "got none named generator"),
    ],
)
def test_bad_accuracies_say_what_was_expected(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        adapter.losses(change(published.robust()))


def test_a_network_without_one_kind_of_images_keeps_its_losses_on_others():
    """A network without BatchNorm has no refined images."""
    some = pandas.DataFrame({"model": ["a", "a", "b", "b"], "format": ["FP32", "INT_4"] * 2})
    some = some.assign(test_clean=0.8, trained_clean=[0.8, 0.4] * 2, refined_clean=[0.8, 0.2, None, None])
    found = adapter.losses(some).set_index("model")
    assert found.pseudo_accuracy_loss.to_dict() == pytest.approx({"a": 0.5, "b": 0.5})
    assert found.pseudo_accuracy_loss_refined["a"] == pytest.approx(0.75)
    assert pandas.isna(found.pseudo_accuracy_loss_refined["b"])
