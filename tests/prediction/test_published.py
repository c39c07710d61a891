import re

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


def test_a_csv_file_is_found_in_the_folder_of_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_DATA", str(tmp_path))
    published.made_up(1).to_csv(tmp_path / "a.csv", index=False)
    assert len(adapter.read_csv("a.csv")) == len(adapter.read_csv(tmp_path / "a.csv")) == 12
    with pytest.raises(FileNotFoundError, match="expected a table .* found no file"):
        adapter.read_csv("none.csv")
    (tmp_path / "a.csv").write_text("modle,format,accuracy\nx,INT_4,0.5\n")
    with pytest.raises(ValueError, match=r"a.csv: expected columns model, .* none named model; .*did you mean 'modle'"):
        adapter.read_csv("a.csv")


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
