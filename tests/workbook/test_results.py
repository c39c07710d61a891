"""Runs own their folders; nothing half-done is ever taken for whole; interrupted runs go on."""

import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest
import torch
import yaml

from rqlib import models
from rqlib.core import files, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.workbook import results
from rqlib.workbook.parameters import ParameterError


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """A folder for the outputs; afterwards this process holds no run any more."""
    monkeypatch.setenv("RQLIB_OUTPUTS", str(tmp_path / "outputs"))
    with runtime.using("cpu", "float32"):
        yield tmp_path / "outputs"
    forget()


def forget() -> None:
    """As if the kernel had died: its locks are gone, and what it knew."""
    for lock in results._held.values():
        lock.release()
    results._held.clear()


def start(notebook: str = "05_robust", **values) -> results.Run:
    values = {"dataset": "digits", "model": "ResNet_18", "seed": 0, "epsilon_255": 8.0, "seeds": [0, 1]} | values
    types = {name: type(value) for name, value in values.items()} | {"seeds": list[int]}
    return results.Run(notebook, {"__annotations__": types, **values})


def finish(notebook: str = "05_robust", accuracy: float = 0.5, **values) -> results.Run:
    run = start(notebook, **values)
    run.record(accuracy=accuracy)
    run.finish()
    return run


def test_a_whole_run(outputs, capsys):
    run = start()
    assert json.loads(run.path("run.json").read_text())["status"] == "running"
    run.record(format="INT_8", accuracy=torch.tensor(0.75), images=numpy.int64(100))
    run.record(format="INT_4", accuracy=numpy.float32(0.5), images=100, note=None)
    run.finish(best=torch.tensor(0.75))
    record = json.loads(run.path("run.json").read_text())
    assert run.folder.parent == outputs / "05_robust"
    assert run.folder.name.startswith("digits-ResNet_18-seed0-")
    assert record["status"] == "done"
    assert record["rows"] == 2
    assert record["summary"] == {"best": 0.75}
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
    run = results.Run("05_robust", namespace)
    assert namespace["rate"] == run.parameters["rate"] == 0.001


def test_the_device_and_the_precision_become_the_active_policy():
    assert start(device="cpu", precision="bfloat16").policy == runtime.Policy(torch.device("cpu"), bfloat16=True)
    assert runtime.active().bfloat16
    assert start(device="cpu", precision="float32").policy == runtime.active()
    assert not runtime.active().bfloat16


def test_bad_parameters_leave_no_trace(outputs):
    history = {"In": ["", "# Parameters\nepocs = 3\n"], "epocs": 3}
    namespace = {"__annotations__": {"epochs": int, "seed": int}, "epochs": 2, "seed": -1, **history}
    with pytest.raises(ParameterError) as caught:
        results.Run("05_robust", namespace)
    assert str(caught.value) == "seed=-1: expected at least 0; unknown parameter 'epocs' (did you mean 'epochs'?)"
    assert not outputs.exists()


def test_identity_follows_what_is_computed_not_where():
    one = results.identity({"seed": 0, "rate": 0.1, "device": "cpu"})
    assert one == results.identity({"rate": 0.1, "seed": 0, "device": "cuda", "run_folder": "outputs/x"})
    others = [{"seed": 1, "rate": 0.1}, {"seed": 0, "rate": 0.2}, {"seed": 0}, {"seed": 0, "rate": 0.1, "steps": 1}]
    assert len({one, *map(results.identity, others)}) == 5
    assert results.identity({"dataset": "imagefolder:/a b", "model": "torchvision:x"}).startswith(
        "imagefolder_a_b-torchv"
    )


def test_a_folder_that_was_asked_for(outputs):
    run = start(run_folder=str(outputs / "05_robust" / "mine"))
    assert run.folder == outputs / "05_robust" / "mine"
    run.record(accuracy=0.5)
    run.finish()
    assert results.collect("05_robust").run.tolist() == ["05_robust/mine"]


@pytest.mark.parametrize("folder", ["/tmp/elsewhere", "rqlib", "{outputs}", "{outputs}/../x", "{outputs}_2/x"])
def test_a_folder_outside_is_refused(outputs, folder):
    with pytest.raises(ParameterError, match="run_folder=.*: expected a folder inside .*outputs"):
        start(run_folder=folder.format(outputs=outputs))
    assert not outputs.exists()


def test_a_link_does_not_lead_outside(outputs, tmp_path):
    outputs.mkdir()
    (outputs / "link").symlink_to(tmp_path)
    with pytest.raises(ParameterError, match="expected a folder inside"):
        start(run_folder=str(outputs / "link" / "x"))


def test_outputs_lie_in_the_root_whatever_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("RQLIB_OUTPUTS")
    monkeypatch.setenv("RQLIB_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    assert results.outputs_folder() == tmp_path / "root" / "outputs"


RUN = """
import sys
from rqlib.workbook import results
results.SAVE_ROWS_EVERY = -1
results.provenance.fingerprint = lambda notebook: "the same"
run = results.Run("05_robust", {"__annotations__": {"seed": int}, "seed": 0})
for index in range(4):
    if not run.has(index=index):
        run.record(index=index, accuracy=index / 7)
        print(index, flush=True)
        if len(sys.argv) > 1 and index == 1:
            input()
run.finish()
"""


def run_elsewhere(*arguments: str) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], **pipes)


def test_a_second_run_of_the_same_stops_and_kill_9_frees_and_resumes(outputs):
    other = run_elsewhere("wait")
    try:
        assert [other.stdout.readline(), other.stdout.readline()] == ["0\n", "1\n"]
        (folder,) = (outputs / "05_robust").iterdir()
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        second = run_elsewhere()
        _, error = second.communicate(timeout=120)
        assert second.returncode == 1
        assert f"output folder in use: another run writes to {folder}" in error
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert not (folder / "rows.parquet").exists()
    with pytest.raises(FileNotFoundError, match="expected a finished run of 05_robust"):
        results.collect("05_robust")
    said, _ = run_elsewhere().communicate(timeout=120)
    assert said.splitlines()[0].startswith("05_robust: goes on after 2 rows of an interrupted run")
    assert said.splitlines()[1:3] == ["2", "3"]
    frame = results.collect("05_robust")
    assert frame["index"].tolist() == [0, 1, 2, 3]
    assert frame.accuracy.tolist() == [0, 1 / 7, 2 / 7, 3 / 7]
    assert not (folder / "unfinished").exists()


def interrupt(monkeypatch, **values) -> results.Run:
    """A run whose kernel dies after a row and some training."""
    monkeypatch.setattr(results, "SAVE_ROWS_EVERY", -1)
    run = start(**values)
    run.record(format="INT_8", accuracy=1 / 3, count=3, flag=True, nothing=None)
    run.unfinished("training.pt").write_text("epoch 7")
    forget()
    return run


def test_an_interrupted_run_goes_on_with_rows_of_the_same_types(monkeypatch):
    before = interrupt(monkeypatch)
    run = start()
    assert run.has(format="INT_8")
    assert not run.has(format="INT_4")
    assert run._rows == before._rows
    assert run.unfinished("training.pt").read_text() == "epoch 7"
    run.record(format="INT_8", accuracy=1 / 3, count=3, flag=True, nothing=None)
    assert len(run.frame()) == 1


def test_changed_code_starts_afresh(monkeypatch):
    interrupt(monkeypatch)
    monkeypatch.setattr(results.provenance, "fingerprint", lambda notebook: "another")
    run = start()
    assert not run.has(format="INT_8")
    assert not run.unfinished("training.pt").exists()


def test_other_parameters_in_the_same_folder_start_afresh(monkeypatch, outputs):
    folder = str(outputs / "05_robust" / "mine")
    interrupt(monkeypatch, run_folder=folder)
    run = start(run_folder=folder, seed=1)
    assert not run.has(format="INT_8")
    assert not run.unfinished("training.pt").exists()


def test_the_run_cell_again_in_the_same_kernel_starts_afresh(monkeypatch):
    monkeypatch.setattr(results, "SAVE_ROWS_EVERY", -1)
    run = start()
    run.record(format="INT_8", accuracy=0.5)
    again = start()
    assert again.folder == run.folder
    assert not again.has(format="INT_8")


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


def test_a_full_disk_leaves_the_old_table(monkeypatch):
    run = start()
    run.save(history=pandas.DataFrame({"loss": [2.0, 1.0]}))
    path = run.path("history.parquet")
    before = path.read_bytes()

    def full(frame, part):
        Path(part).write_bytes(before[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pandas.DataFrame, "to_parquet", full)
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


def test_other_seeds_are_those_of_the_same_settings(monkeypatch):
    conditions = itertools.product([0, 1], ["dense", "lwm", "hydra"], [0.1, 0.01])
    rows = pandas.DataFrame(conditions, columns=["seed", "method", "kept"]).assign(epsilon_255=8.0)
    mine, other = rows[rows.seed == 0], rows[rows.seed == 1]
    monkeypatch.setattr(
        results, "collect", lambda notebook: pandas.concat([mine, other, other.assign(epsilon_255=4.0)])
    )
    found = results.with_other_seeds(mine, "06_prune", ["epsilon_255"])
    assert len(found) == len(rows)
    assert set(found.epsilon_255) == {8.0}
    part = mine[mine.method != "hydra"]
    found = results.with_other_seeds(part, "06_prune", ["epsilon_255"])
    assert len(found) == len(rows), "of the same seed the methods that this run lacks"

    def none(notebook):
        raise FileNotFoundError

    monkeypatch.setattr(results, "collect", none)
    assert results.with_other_seeds(mine, "06_prune", ["epsilon_255"]) is mine
