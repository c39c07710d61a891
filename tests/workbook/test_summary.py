"""Every finished run is listed; a reference table is written with its command."""

import pandas
import pytest

from rqlib.workbook import summary
from tests.workbook.runs import finish, start


@pytest.fixture
def three_runs(outputs):
    """Two seeds of one setting and one of another, finished."""
    for model, seed, accuracy in [("LeNet", 0, 0.5), ("LeNet", 1, 0.7), ("SmallCNN", 0, 0.9)]:
        finish("01_train", accuracy, model=model, seed=seed)
    return outputs.parent


@pytest.mark.usefixtures("three_runs")
def test_every_finished_run_is_listed():
    table = summary.runs()
    assert sorted(zip(table.model, table.accuracy, strict=True)) == [("LeNet", 0.5), ("LeNet", 0.7), ("SmallCNN", 0.9)]
    assert all(str(folder).startswith("outputs/01_train/") for folder in table.folder)


def test_the_command_line_writes_a_table_and_says_when_there_is_nothing(three_runs, monkeypatch, capsys):
    path = three_runs / "reference" / "train.csv"
    summary.main(["--table", "01_train", str(path), "--command", "make it"])
    table = pandas.read_csv(path)
    assert list(table.command) == ["make it", "make it"]
    assert list(table.seeds) == [2, 1]
    summary.main([])
    assert "report.html" in capsys.readouterr().out
    monkeypatch.setenv("RQLIB_OUTPUTS", str(three_runs / "nothing"))
    with pytest.raises(SystemExit, match="no run has finished"):
        summary.main([])


def test_a_table_beside_the_rows_is_written_with_where_it_comes_from(outputs, capsys):
    for seed in (0, 1):
        run = start("05_robust", seed=seed, test_images=20)
        run.save(study=pandas.DataFrame({"variant": ["original", "RSE"], "robust_accuracy": [0.5, 0.25 + seed]}))
        run.finish()
    finish("05_robust", seed=2)
    path = outputs.parent / "reference" / "defenses.csv"
    summary.main(["--part", "05_robust", "study", str(path), "--command", "make it"])
    assert "original" in capsys.readouterr().out
    table = pandas.read_csv(path)
    assert sorted(table.robust_accuracy) == [0.25, 0.5, 0.5, 1.25]
    assert set(table.test_images) == {20}
    assert set(table.command) == {"make it"}
    assert table.run.nunique() == 2
    with pytest.raises(FileNotFoundError, match="expected finished runs of 05_robust with a table 'stduy'"):
        summary.main(["--part", "05_robust", "stduy", str(path)])
