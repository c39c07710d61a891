"""Every finished run is listed; a reference table is written with its command."""

import re
import shutil

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
    said = capsys.readouterr().out
    assert f"{path}: {len(pandas.read_csv(path))} rows, the last one:" in said
    assert re.search(r"^variant +RSE$", said, re.MULTILINE)
    table = pandas.read_csv(path)
    assert sorted(table.robust_accuracy) == [0.25, 0.5, 0.5, 1.25]
    assert set(table.test_images) == {20}
    assert set(table.command) == {"make it"}
    assert table.run.nunique() == 2
    with pytest.raises(FileNotFoundError, match="expected finished runs of 05_robust with a table 'stduy'"):
        summary.main(["--part", "05_robust", "stduy", str(path)])


def test_a_table_grows_preset_by_preset_and_a_network_that_is_made_again_is_replaced(outputs, capsys):
    path = outputs.parent / "reference/train.csv"
    line = ["--table", "01_train", str(path), "--preset"]

    def made(preset: str, model: str, accuracy: float) -> None:
        folder = str(outputs / f"01_train/{preset}-{model}")
        finish("01_train", accuracy, model=model, epsilon_255=float(len(preset)), run_folder=folder)

    made("nine", "LeNet", 0.5)
    made("nine_small", "LeNet", 0.6)
    summary.main([*line, "nine"])
    assert list(pandas.read_csv(path).accuracy) == [0.5]
    summary.main([*line, "nine_small"])
    for folder in (outputs / "01_train").iterdir():  # another machine
        shutil.rmtree(folder)
    made("nine", "LeNet", 0.7)
    made("nine", "SmallCNN", 0.8)
    summary.main([*line, "nine"])
    table = pandas.read_csv(path)
    assert list(table.accuracy) == [0.6, 0.7, 0.8]
    assert list(table.command) == ["make workbook PRESET=nine_small", *["make workbook PRESET=nine"] * 2]
    assert list(table)[-4:] == ["machine", "computed_in", "torch", "command"]
    before = path.read_text()
    summary.main([*line, "nine"])
    assert path.read_text() == before
    with pytest.raises(SystemExit):
        summary.main(["--preset", "nine"])
    capsys.readouterr()


def test_runs_by_hand_belong_to_no_preset_and_fewer_seeds_are_said(outputs, capsys):
    path = outputs.parent / "reference/train.csv"
    line = ["--table", "01_train", str(path), "--preset", "digits"]
    for seed in range(10):
        finish("01_train", 0.5, model="LeNet", seed=seed, run_folder=str(outputs / f"01_train/digits-{seed}"))
    finish("01_train", 0.9, model="LeNet", seed=10)  # its folder is digits-LeNet-seed10-...
    summary.main(line)
    assert pandas.read_csv(path)[["accuracy", "seeds"]].to_numpy().tolist() == [[0.5, 10]]
    shutil.rmtree(outputs / "01_train/digits-0")
    with pytest.warns(UserWarning, match="1 rows are replaced by rows over fewer seeds"):
        summary.main(line)
    with pytest.raises(FileNotFoundError, match="expected finished runs of 01_train by preset digit with rows"):
        summary.main([*line[:-1], "digit"])
    capsys.readouterr()


def test_networks_of_two_widths_are_no_seeds_of_each_other(outputs):
    for width in (0.25, 0.5):
        run = start("02_quantize", checkpoint=f"{width}.pt")
        run.record(model="LeNet", width=width, accuracy=width)
        run.finish()
    assert sorted(summary.seeds.over_seeds("02_quantize").accuracy) == [0.25, 0.5]


def test_parts_of_other_runs_stay(outputs, capsys):
    path = outputs.parent / "reference/part.csv"
    for seed, accuracy in [(0, 0.5), (1, 0.25), (1, 0.75)]:
        run = start("06_prune", seed=seed, run_folder=str(outputs / f"06_prune/small-{seed}"))
        run.save(joint=pandas.DataFrame({"method": ["DA"], "robust_accuracy": [accuracy]}))
        run.finish()
        summary.main(["--part", "06_prune", "joint", str(path), "--preset", "small"])
        shutil.rmtree(outputs / f"06_prune/small-{seed}")
    assert list(pandas.read_csv(path).robust_accuracy) == [0.5, 0.75]
    with pytest.raises(FileNotFoundError, match="expected finished runs"):
        summary.main(["--part", "06_prune", "joint", str(path), "--preset", "smal"])
    capsys.readouterr()
