import pandas
import pytest

from rqlib import workbook
from rqlib.workbook import summary


@pytest.fixture
def three_runs(tmp_path, monkeypatch):
    """Two seeds of one setting and one of another, finished."""
    monkeypatch.setenv("RQLIB_OUTPUTS", str(tmp_path / "outputs"))
    for model, seed, accuracy in [("A", 0, 0.5), ("A", 1, 0.7), ("B", 0, 0.9)]:
        annotations = {"model": str, "seed": int}
        run = workbook.Run("01_train", {"__annotations__": annotations, "model": model, "seed": seed})
        run.record(images="digits", accuracy=accuracy)
        run.finish(accuracy=accuracy)
    return tmp_path


def test_every_finished_run_is_listed(three_runs):
    table = summary.runs()
    assert list(table.model) == ["A", "A", "B"]
    assert list(table.accuracy) == [0.5, 0.7, 0.9]
    assert all(str(folder).startswith("outputs/01_train/") for folder in table.folder)


def test_mean_and_spread_over_seeds(three_runs):
    table = summary.over_seeds("01_train").set_index("model")
    assert list(table.seeds) == [2, 1]
    assert table.accuracy["A"] == pytest.approx(0.6)
    assert table.accuracy_std["A"] == pytest.approx(0.2 / 2**0.5)
    assert pandas.isna(table.accuracy_std["B"])
    assert {"machine", "computed_in", "torch"} <= set(table)


def test_runs_without_a_seed_count_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_OUTPUTS", str(tmp_path / "outputs"))
    run = workbook.Run("03_fit", {"__annotations__": {"source": str}, "source": "02_quantize"})
    run.record(predictor="mean loss", held_out_r2=0.25)
    run.finish()
    table = summary.over_seeds("03_fit")
    assert table[["predictor", "seeds", "held_out_r2"]].to_numpy().tolist() == [["mean loss", 1, 0.25]]


def test_command_line_writes_a_table_and_says_when_there_is_nothing(three_runs, monkeypatch, capsys):
    path = three_runs / "reference" / "train.csv"
    summary.main(["--table", "01_train", str(path), "--command", "make it"])
    table = pandas.read_csv(path)
    assert list(table.command) == ["make it", "make it"]
    summary.main([])
    assert "report.html" in capsys.readouterr().out
    monkeypatch.setenv("RQLIB_OUTPUTS", str(three_runs / "nothing"))
    with pytest.raises(SystemExit, match="no run has finished"):
        summary.main([])
