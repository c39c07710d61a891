"""Finished runs are found and collected; unfinished ones never are."""

import pytest

from rqlib.workbook import results
from tests.workbook.runs import finish


def test_outputs_lie_in_the_root_whatever_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("RQLIB_OUTPUTS")
    monkeypatch.setenv("RQLIB_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    assert results.outputs_folder() == tmp_path / "root" / "outputs"


def test_collect_and_find():
    folders = [finish(seed=seed, accuracy=seed / 4).folder for seed in (0, 1, 2)]
    finish("01_train", seed=1)
    frame = results.collect("05_robust")
    assert dict(zip(frame.seed, frame.accuracy, strict=True)) == {0: 0.0, 1: 0.25, 2: 0.5}
    assert set(frame.run) == {f"05_robust/{folder.name}" for folder in folders}
    assert results.find("05_robust", seed=1, seeds=[0, 1]) == folders[1]
    assert [record["folder"] for record in results.finished("05_robust")] == sorted(folders)


def test_find_takes_the_latest():
    finish(epsilon_255=4.0)
    latest = finish(epsilon_255=8.0)
    assert results.find("05_robust", seed=0) == latest.folder
    assert finish(epsilon_255=4.0).folder == results.find("05_robust", seed=0)


def test_nothing_to_collect_names_the_command(outputs):
    with pytest.raises(
        FileNotFoundError, match=r"make it: python -m rqlib.workbook.run notebooks/01_train.ipynb \S+ -p seed=3$"
    ):
        results.find("01_train", seed=3)
    with pytest.raises(FileNotFoundError, match=f"expected a finished run of 01_train in {outputs}, found none"):
        results.collect("01_train")


def test_a_damaged_table_is_named():
    path = finish().path("rows.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{path.name}: not a whole table"):
        results.collect("05_robust")
