"""A run owns its folder; nothing half-done is ever taken for whole; an interrupted run goes on."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest
import torch
import yaml

from rqlib import defenses, models
from rqlib.core import derived, files, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.workbook import recording, results
from rqlib.workbook.parameters import ParameterError
from tests.workbook.runs import finish, forget, start


def test_a_whole_run(outputs, capsys):
    run = start()
    assert json.loads(run.path("run.json").read_text())["status"] == "running"
    run.record(format="INT_8", accuracy=torch.tensor(0.75), images=numpy.int64(100))
    run.record(format="INT_4", accuracy=numpy.float32(0.5), images=100, note=None)
    run.finish("Three of four.", "ResNet_18 on digits", best=torch.tensor(0.75))
    record = json.loads(run.path("run.json").read_text())
    assert run.folder.parent == outputs / "05_robust"
    assert run.folder.name.startswith("digits-ResNet_18-seed0-")
    assert record["status"] == "done"
    assert record["rows"] == 2
    assert record["summary"] == {"best": 0.75}
    assert (record["answer"], record["title"]) == ("Three of four.", "ResNet_18 on digits")
    assert record["policy"]["precision"] == "float32"
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["machine"]["cores"] == os.cpu_count()
    assert record["seconds"] >= 0
    assert record["peak_memory_mb"]["host"] > 10
    assert record["parameters"] == yaml.safe_load(run.path("params.yaml").read_text())
    assert {"commit", "uncommitted_changes", "code", "started"} <= record.keys()
    said = capsys.readouterr().out
    assert "best = 0.75" in said
    assert str(run.folder) in said
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "params.yaml", "rows.parquet", "run.json"]


def test_a_notebook_shows_all_rows_of_a_table_of_usual_length():
    start()
    assert "<th>150</th>" in pandas.DataFrame({"accuracy": range(200)})._repr_html_()


def test_rows_are_tidy_and_carry_the_scalar_parameters():
    run = start(device="cpu", run_folder="")
    run.record(seed=1, accuracy=0.5)
    run.record(seed=2, accuracy=0.25)
    expected = {"dataset": "digits", "model": "ResNet_18", "epsilon_255": 8.0}
    frame = run.frame()
    assert list(frame.columns) == ["dataset", "model", "seed", "epsilon_255", "accuracy"]
    assert frame.to_dict("records") == [expected | {"seed": s, "accuracy": a} for s, a in [(1, 0.5), (2, 0.25)]]


def test_the_same_cell_run_twice_measures_once():
    run = start()
    for accuracy in (0.5, 0.5, math.nan, math.nan, 0.25):
        run.record(format="INT_8", accuracy=accuracy)
    assert len(run.frame()) == 3


def test_only_numbers_and_texts_in_a_row():
    with pytest.raises(TypeError, match="expected a number or text in a row, got list"):
        start().record(accuracies=[0.5])


def test_checked_values_go_back_into_the_notebook():
    namespace = {"__annotations__": {"rate": float}, "rate": "1e-3"}
    run = recording.Run("05_robust", namespace)
    assert namespace["rate"] == run.parameters["rate"] == 0.001


def test_the_device_and_the_precision_become_the_active_policy():
    assert start(device="cpu", precision="bfloat16").policy == runtime.Policy(torch.device("cpu"), bfloat16=True)
    assert runtime.active().bfloat16
    assert start(device="cpu", precision="float32").policy == runtime.active()
    assert not runtime.active().bfloat16


def test_bad_parameters_leave_no_trace(outputs):
    history = {"In": ["", "# Parameters\nepocs = 3\n"], "epocs": 3}
    namespace = {"__annotations__": {"epochs": int, "seed": int}, "epochs": 2, "seed": -1, **history}
    with pytest.raises(ParameterError, match="seed=-1: expected .*; unknown parameter 'epocs'"):
        recording.Run("05_robust", namespace)
    assert not outputs.exists()


def test_identity_follows_what_is_computed_not_where():
    one = recording.identity({"seed": 0, "rate": 0.1, "device": "cpu"})
    assert one == recording.identity({"rate": 0.1, "seed": 0, "device": "cuda", "run_folder": "outputs/x"})
    others = [{"seed": 1, "rate": 0.1}, {"seed": 0, "rate": 0.2}, {"seed": 0}, {"seed": 0, "rate": 0.1, "steps": 1}]
    assert len({one, *map(recording.identity, others)}) == 5
    assert recording.identity({"dataset": "imagefolder:/a b", "model": "torchvision:x"}).startswith(
        "imagefolder_a_b-torchv"
    )


def test_a_folder_that_was_asked_for(outputs):
    run = start(run_folder=str(outputs / "05_robust" / "mine"))
    assert run.folder == outputs / "05_robust" / "mine"
    run.record(accuracy=0.5)
    run.finish()
    assert results.collect("05_robust").run.tolist() == ["05_robust/mine"]


@pytest.mark.parametrize(
    "folder", ["/tmp/elsewhere", "rqlib", "outputs", "outputs/../x", "outputs_2/x", "outputs/link/x"]
)
def test_a_folder_outside_is_refused(outputs, tmp_path, folder):
    outputs.mkdir()
    (outputs / "link").symlink_to(tmp_path)
    with pytest.raises(ParameterError, match="run_folder=.*: expected a folder inside .*outputs"):
        start(run_folder=str(tmp_path / folder))
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs", "link"]


ANOTHER = """
import time
from rqlib.workbook import recording
recording.SAVE_ROWS_EVERY = -1
recording.provenance.fingerprint = lambda notebook: "the same"
run = recording.Run("05_robust", {"__annotations__": {"seed": int}, "seed": 0})
for index in range(2):
    run.record(index=index, accuracy=index / 7)
print("recorded", flush=True)
time.sleep(600)
"""


def test_a_second_run_of_the_same_stops_and_kill_9_frees_and_resumes(outputs, monkeypatch, capsys):
    monkeypatch.setattr(recording.provenance, "fingerprint", lambda notebook: "the same")
    namespace = {"__annotations__": {"seed": int}, "seed": 0}
    other = subprocess.Popen([sys.executable, "-c", ANOTHER], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "recorded\n"
        (folder,) = (outputs / "05_robust").iterdir()
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(RuntimeError, match=f"output folder in use: another run writes to {folder}"):
            recording.Run("05_robust", namespace)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    finally:
        other.kill()
        other.communicate()
    assert not (folder / "rows.parquet").exists()
    with pytest.raises(FileNotFoundError, match="expected a finished run of 05_robust"):
        results.collect("05_robust")
    run = recording.Run("05_robust", namespace)
    assert "05_robust: goes on after 2 rows of an interrupted run" in capsys.readouterr().out
    run.record(index=2, accuracy=2 / 7)
    run.finish()
    assert results.collect("05_robust").accuracy.tolist() == [0, 1 / 7, 2 / 7]
    assert not (folder / "unfinished").exists()


def interrupt(monkeypatch, **values) -> recording.Run:
    """A run whose kernel dies after a row and some training."""
    monkeypatch.setattr(recording, "SAVE_ROWS_EVERY", -1)
    run = start(**values)
    run.record(format="INT_8", accuracy=1 / 3, count=3, flag=True, nothing=None)
    run.unfinished("training.pt").write_text("epoch 7")
    forget()
    return run


def test_an_interrupted_run_goes_on_with_rows_of_the_same_types(monkeypatch):
    before = interrupt(monkeypatch)
    run = start()
    assert run.frame().format.tolist() == ["INT_8"]
    assert run._rows == before._rows
    assert run.unfinished("training.pt").read_text() == "epoch 7"
    run.record(format="INT_8", accuracy=1 / 3, count=3, flag=True, nothing=None)
    assert len(run.frame()) == 1


@pytest.mark.parametrize("changed", ["code", "parameters", "nothing, but the cell ran again in the same kernel"])
def test_a_run_starts_afresh_with(monkeypatch, outputs, changed, capsys):
    folder, seed = str(outputs / "05_robust" / "mine"), 0
    before = interrupt(monkeypatch, run_folder=folder)
    if changed == "code":
        monkeypatch.setattr(recording.provenance, "fingerprint", lambda notebook: "another")
    elif changed == "parameters":
        seed = 1
    else:
        before = start(run_folder=folder)
        before.unfinished("training.pt").write_text("epoch 8")
    run = start(run_folder=folder, seed=seed)
    assert run.folder == before.folder
    assert run.frame().empty
    assert not run.unfinished("training.pt").exists()
    said = f"05_robust: starts afresh; an interrupted run in {folder} had other parameters or code"
    assert (said in capsys.readouterr().out) == (changed in ("code", "parameters"))


def test_a_kernel_gives_a_folder_back_when_it_goes_to_another_or_has_finished():
    first, second = start(seed=0), start(seed=1)
    files.lock(first.folder).release()
    with pytest.raises(RuntimeError, match="output folder in use"):
        files.lock(second.folder)
    second.finish()
    files.lock(second.folder).release()


def test_a_finished_run_starts_afresh_and_is_not_collected_meanwhile(capsys):
    finish(accuracy=0.5)
    finish(accuracy=0.5, seed=1)
    forget()
    run = start()
    assert len(run.frame()) == 0
    assert results.collect("05_robust").seed.tolist() == [1]
    assert "05_robust: 1 of 2 runs have finished; the others are left out" in capsys.readouterr().out
    run.record(accuracy=0.75)
    run.finish()
    assert sorted(results.collect("05_robust").accuracy) == [0.5, 0.75]


def test_a_full_disk_leaves_the_old_table(monkeypatch):
    run = start()
    run.save(history=pandas.DataFrame({"loss": [2.0, 1.0]}))
    path = run.path("history.parquet")
    before = path.read_bytes()

    def full(table, part):
        Path(part).write_bytes(before[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.parquet, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(history=pandas.DataFrame({"loss": [3.0]}))
    assert path.read_bytes() == before
    run.record(accuracy=0.5)
    with pytest.raises(OSError, match="No space left"):
        run.finish()
    assert json.loads(run.path("run.json").read_text())["status"] == "running"


def test_checkpoints_carry_the_runs_parameters():
    spec = ImageSpec(channels=1, height=28, width=28, mean=(0.5,), std=(0.5,))
    run, network = start(), models.build("LeNet", spec, width=0.5)
    path = run.checkpoint(network, "LeNet", spec, file="last.pt", width=0.5, clean_accuracy=0.5)
    _, info = models.load(path)
    assert path == run.path("last.pt")
    assert info["parameters"] == run.parameters
    assert info["metadata"] == {"clean_accuracy": 0.5}


def test_a_checkpoint_that_would_compute_something_else_is_refused(monkeypatch):
    spec = ImageSpec()
    network = defenses.defend(models.build("SmallCNN", spec, seed=0), weight_format="range_4")
    run = start()
    assert run.checkpoint(network, "SmallCNN", spec).is_file()
    monkeypatch.setattr(recording, "bake", lambda model: models.build("SmallCNN", spec, seed=1))
    with pytest.raises(derived.NotEqual, match="baking its weights changes what"):
        run.checkpoint(network, "SmallCNN", spec)
