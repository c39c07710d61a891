"""The graph on a real Slurm: a training is cancelled, another is told to stop, and everything ends as undisturbed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from rqlib.core import files
from tests.cluster import single_node
from tests.notebooks.small import ROOT, SMALL, command, environment

TRAINED = "01_train/tiny-SmallCNN-0"
QUANTIZED = "02_quantize/tiny-SmallCNN-0-tensor"
VALUES = {"recipe": "quick", "epochs": 12, "width": 1.0, "precision": "float32"}
WORKFLOW = {
    "threads": 1,
    "01_train": [{"model": ["SmallCNN"], "seed": [0]}],
    "02_quantize": [{"granularity": ["tensor"]}],
}


@pytest.fixture
def slurm(tmp_path_factory):
    """A running Slurm of the test's own; skipped with the reason where there can be none."""
    if reason := single_node.missing():
        pytest.skip(reason)
    with single_node.running(tmp_path_factory.mktemp("slurm")):
        yield


def preset(folder: Path) -> Path:
    """The folder of the preset `tiny`."""
    (folder / "tiny").mkdir(parents=True)
    content = {"workflow": WORKFLOW, "01_train": VALUES, "02_quantize": SMALL["02_quantize"]}
    for name, values in content.items():
        (folder / f"tiny/{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def submit(params: Path, outputs: Path, log: Path) -> subprocess.Popen:
    """Start Snakemake with the profile; it looks for ended jobs more often than on a cluster."""
    often = ["--nolock", "--latency-wait", "5", "--slurm-init-seconds-before-status-checks", "2"]
    line = [Path(sys.executable).with_name("snakemake"), "--workflow-profile", "params/slurm", *often]
    line = ["timeout", "-s", "KILL", "560", *line, "--config", "preset=tiny", f"params={params}"]
    with log.open("w") as said:
        return subprocess.Popen(line, env=environment(outputs), cwd=ROOT, stdout=said, stderr=said)


def epochs_done(state: Path) -> int:
    """Whole epochs in the state of a training; 0 if there is none."""
    return len(files.load_tensors(state)["history"]) if state.is_file() else 0


def wait_for(state: Path, epochs: int, graph: subprocess.Popen, log: Path) -> str:
    """Until so many epochs are kept; the number of the job that runs."""
    while epochs_done(state) < epochs:
        assert graph.poll() is None, log.read_text()[-3000:]
        time.sleep(0.05)
    running = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%i"], capture_output=True, text=True, check=True)
    return running.stdout.strip()


@pytest.mark.usefixtures("slurm")
def test_cancelled_and_stopped_trainings_go_on_and_end_as_an_undisturbed_one(tmp_path):
    outputs, log = tmp_path / "out puts", tmp_path / "log.txt"
    state = outputs / TRAINED / "unfinished/training.pt"
    graph = submit(preset(tmp_path / "params"), outputs, log)
    cancelled = wait_for(state, 2, graph, log)
    subprocess.run(["scancel", cancelled], check=True)
    again = wait_for(state, 5, graph, log)
    assert again != cancelled
    subprocess.run(["scancel", "--signal=URG", again], check=True)
    line = [sys.executable, "-m", "rqlib.workbook.run", "notebooks/01_train.ipynb", tmp_path / "whole.ipynb"]
    values = [f"-p{name}={value}" for name, value in (VALUES | {"model": "SmallCNN", "seed": 0}).items()]
    undisturbed = command([*line, *values], outputs=tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr[-2000:]
    assert graph.wait() == 0, log.read_text()[-3000:]
    said = log.read_text()
    assert f"SLURM-job '{cancelled}' failed, SLURM status is: 'CANCELLED'" in said
    assert f"SLURM-job '{again}' failed, SLURM status is: 'FAILED'" in said
    (job_log,) = (ROOT / ".snakemake/slurm_logs").rglob(f"tiny-SmallCNN-0/{again}.log")
    assert "stopped as asked by a signal" in job_log.read_text()
    assert "goes on at epoch" in (outputs / TRAINED / "notebook.ipynb").read_text()
    (expected,) = (tmp_path / "whole").rglob("checkpoint.pt")
    found = [files.load_tensors(path)["state"] for path in (expected, outputs / TRAINED / "checkpoint.pt")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert (outputs / QUANTIZED / "rows.parquet").is_file()
    assert {path.name for path in outputs.rglob(".*")} == {".lock"}, "temporary files are left"


RUNNER = """#!/usr/bin/env bash
# Stands for python: it is told to stop the first time, and ends well the second time.
echo "$@" >> "$0.said"
[ -e "$0.kept" ] && exit 0
trap 'touch "$0.kept"; exit 75' USR1
touch "$0.begun"
while true; do sleep 0.1; done
"""


@pytest.mark.usefixtures("slurm")
def test_without_snakemake_a_job_that_is_told_to_stop_is_queued_again(tmp_path):
    runner = tmp_path / "runner"
    runner.write_text(RUNNER)
    runner.chmod(0o755)
    line = ["sbatch", "--parsable", f"--output={tmp_path}/%j.log", "slurm/run.sbatch", "a notebook", "out"]
    settings = os.environ | {"RQLIB_PYTHON": str(runner)}
    job = subprocess.run(line, cwd=ROOT, env=settings, capture_output=True, text=True, check=True).stdout.strip()
    until((tmp_path / "runner.begun").exists, job, tmp_path)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    until(lambda: "Restarts=1" in shown(job), job, tmp_path)
    until(lambda: "JobState=COMPLETED" in shown(job), job, tmp_path)
    assert (tmp_path / "runner.said").read_text() == "-m rqlib.workbook.run a notebook out\n" * 2


def shown(job: str) -> str:
    """What Slurm knows of a job, or why it does not answer: a busy controller is asked again."""
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    return said.stdout + said.stderr


def until(reached: Callable[[], bool], job: str, folder: Path) -> None:
    """Wait for a state; fail with what Slurm says of the job, and what it has logged in the folder."""
    deadline = time.monotonic() + 250  # a requeued job waits for 20 s; after 300 s Slurm forgets one that has ended
    while not reached():
        assert time.monotonic() < deadline, [shown(job), *(path.read_text() for path in folder.glob("*.log"))]
        time.sleep(0.1)
