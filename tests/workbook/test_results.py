"""Finished runs are found and collected; unfinished ones never are."""

import json
import re

import pandas
import pytest

from rqlib.core import files
from rqlib.workbook import recording, results, seeds, summary
from tests.workbook.runs import finish, start


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
    begun = start(seed=3).folder
    assert [record["folder"] for record in results.unfinished("05_robust")] == [begun]


@pytest.mark.parametrize(("bits", "expected"), [(8, [8.0, None]), ("eight", ["eight", 4])], ids=["missing", "mixed"])
def test_columns_that_only_some_runs_have_or_that_hold_text_in_some(bits, expected):
    finish(seed=0, model="SmallCNN", bits=bits)
    finish(seed=1, model="LeNet", **({"bits": 4} if bits == "eight" else {}))
    frame = results.collect("05_robust").sort_values("seed")
    found = [None if pandas.isna(value) else value for value in frame.bits]
    assert found == expected
    assert frame.run.str.startswith("05_robust/").all()


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
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        results.collect("05_robust")


WHOLE = {"notebook": "05_robust", "status": "done", "started": "2026", "parameters": {}}

BAD_RECORDS = {
    "empty": (lambda path: path.write_text(""), "expected JSON, got Expecting value.*; remove the file and run"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:200]), "is damaged|expected JSON"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe{}"), "expected JSON, got 'utf-8' codec"),
    "deep": (lambda path: path.write_text("[" * 100_000), "expected JSON, got"),
    "list": (lambda path: path.write_text("[]"), "expected names and values in JSON, got list"),
    "of another program": (
        lambda path: path.write_text('{"id": 7}'),
        "the record of a run, got notebook: Field",
    ),
    "no parameters": (
        lambda path: path.write_text(json.dumps(WHOLE | {"parameters": None})),
        "got parameters: Input should be a valid dict.*; run it again",
    ),
    "no machine": (
        lambda path: path.write_text(json.dumps({**files.load_json(path), "machine": {}})),
        "got machine.processor: Field required; machine.cores",
    ),
    "a wrong type": (
        lambda path: path.write_text(json.dumps({**files.load_json(path), "seconds": "long"})),
        "got seconds: Input",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "edited": (
        lambda path: path.write_text(path.read_text().replace("digits", "cifar9")),
        "is damaged: expected",
    ),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_one_bad_record_is_named_and_left_out(kind):
    bad, good = finish(seed=1).path("run.json"), finish(seed=2)
    damage, words = BAD_RECORDS[kind]
    damage(bad)
    for read in (results.collect, results.find, results.finished, seeds.over_seeds, lambda notebook: summary.runs()):
        with pytest.warns(UserWarning, match=f"run left out: .*{re.escape(str(bad))}.*({words})|{words}: '{bad}'"):
            read("05_robust")
    with pytest.warns(UserWarning, match="run left out"):
        assert results.find("05_robust") == good.folder


@pytest.mark.parametrize("missing", ["checkpoint.pt", "seed1/history.parquet", "rows.parquet"])
def test_a_run_counts_as_finished_only_with_the_files_that_it_wrote(missing):
    run = start("01_train")
    run.record(accuracy=0.5)
    files.save_tensors(run._written("checkpoint.pt"), {})
    run.save("seed1", history=run.frame())
    run.finish()
    assert results.find("01_train") == run.folder
    run.path(missing).unlink()
    with pytest.warns(UserWarning, match=f"run left out: {run.folder} has no {missing}; run it again"):
        assert results.finished("01_train") == []
    with pytest.warns(UserWarning, match="left out"), pytest.raises(FileNotFoundError, match="a finished run of 01_tr"):
        results.collect("01_train")


@pytest.mark.parametrize(("notebook", "name"), [("05_robust", "rows.parquet"), ("01_train", "checkpoint.pt")])
def test_a_record_that_lists_no_files_promises_the_usual_ones(notebook, name):
    run = finish(notebook)
    run.path("checkpoint.pt").touch()
    record = files.load_json(run.path("run.json"))
    del record["files"]
    run.path("run.json").write_text(json.dumps(record))
    assert results.find(notebook) == run.folder
    run.path(name).unlink()
    with pytest.warns(UserWarning, match=f"has no {name}"):
        assert results.finished(notebook) == []


def test_what_a_run_goes_on_from_stays_until_its_notebook_is_written(outputs):
    folder = outputs / "05_robust" / "mine"
    with pytest.raises(OSError, match="No space left"), recording.keeping(folder):
        finish(run_folder=str(folder))
        raise OSError("No space left on device: the executed notebook")
    assert (folder / "unfinished" / "rows.pt").is_file()
    with recording.keeping(folder):
        finish(run_folder=str(folder))
        other = finish(seed=3)
        assert (folder / "unfinished").is_dir()
    assert not (folder / "unfinished").exists()
    assert not other.unfinished("").exists()


def test_a_folder_of_that_name_that_belongs_to_no_run_stays(tmp_path):
    (tmp_path / "unfinished").mkdir()
    with recording.keeping(tmp_path):
        pass
    assert (tmp_path / "unfinished").is_dir()
