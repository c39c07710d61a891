"""The notebooks run: compared by nbval, fanned out by the Snakefile, refused when a name is misspelled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas
import papermill
import pytest

from rqlib import results

ROOT = Path(__file__).parent.parent
SMALL = {"01_train": {"model": "ResNet_18", "width": 0.25, "epochs": 1}}  # the digits preset, made smaller
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))


def run(command: list, *, outputs: Path, timeout: int = 500, **settings) -> subprocess.CompletedProcess:
    environment = os.environ | {"RQLIB_OUTPUTS": os.fspath(outputs), "RQLIB_ROOT": os.fspath(ROOT)}
    command = ["timeout", "-s", "KILL", str(timeout), *map(os.fspath, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, **settings)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_nbval_runs_and_compares(notebook, tmp_path):
    prepared = tmp_path / f"{notebook}.ipynb"
    small = SMALL[notebook]
    papermill.execute_notebook(
        ROOT / f"notebooks/{notebook}.ipynb", prepared, small, prepare_only=True, progress_bar=False
    )
    nb = nbformat.read(prepared, 4)
    assert any("injected-parameters" in cell.metadata.get("tags", []) for cell in nb.cells)
    cells = [cell for cell in nb.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert cells
    assert all(cell.outputs for cell in cells), "the compared cells keep their stored output"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", tmp_path]
    done = run([*command, "--nbval-lax", "-x", prepared], outputs=tmp_path / "outputs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    cells[0].outputs[0]["text"] = "another summary\n"
    nbformat.write(nb, prepared)
    failed = run([*command, "--nbval-lax", "-x", prepared], outputs=tmp_path / "outputs")
    assert failed.returncode == 1, "nbval compares nothing"


def test_the_snakefile_runs_papermill_once_and_then_nothing(tmp_path):
    preset = tmp_path / "tiny"
    preset.mkdir()
    (preset / "01_train.yaml").write_text("dataset: digits\nepochs: 2\n")
    (preset / "workflow.yaml").write_text("01_train:\n  - {model: [SmallCNN], seed: [3]}\n")
    command = [Path(sys.executable).with_name("snakemake"), "--cores", "1", "--nolock"]
    command += ["--config", "preset=tiny", f"params={tmp_path}"]
    done = run(command, outputs=tmp_path / "outputs")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = results.collect("01_train", tmp_path / "outputs")
    assert rows[["model", "seed", "epochs_run"]].to_numpy().tolist() == [["SmallCNN", 3, 2]]
    assert rows.test_accuracy.between(0.05, 1).all()
    folder = tmp_path / "outputs/01_train/tiny-SmallCNN-3"
    made = {path.name for path in folder.iterdir()}
    assert {"params.yaml", "run.json", "rows.parquet", "history.parquet", "checkpoint.pt"} <= made
    assert {"last.pt", "notebook.ipynb", "report.html"} <= made
    assert pandas.read_parquet(folder / "history.parquet").loss.notna().all()
    again = run(command, outputs=tmp_path / "outputs")
    assert "Nothing to be done" in again.stderr, again.stderr[-2000:]


def test_papermill_refuses_an_unknown_name(tmp_path):
    command = [Path(sys.executable).with_name("papermill"), ROOT / "notebooks/01_train.ipynb", tmp_path / "out.ipynb"]
    done = run([*command, "-p", "epocs", "3"], outputs=tmp_path / "outputs")
    assert done.returncode != 0
    assert "unknown parameter 'epocs' (did you mean 'epochs'?)" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["epocs=3"], "unknown parameter 'epocs' (did you mean 'epochs'?)"),
        (["epochs=many", "width=wide"], "epochs='many': expected int"),
        (["width=0"], "width=0.0: expected above 0"),
    ],
)
def test_a_batch_run_is_refused_before_it_starts(tmp_path, settings, message):
    out = tmp_path / "out.ipynb"
    settings = [part for setting in settings for part in ("-p", setting)]
    done = run([sys.executable, "-m", "rqlib.run", "notebooks/01_train.ipynb", out, *settings], outputs=tmp_path / "o")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["dataset=cifar11"], "did you mean 'cifar10'"),
        (["weights=nowhere.pt"], "nowhere.pt"),
        (["run_folder=/tmp"], "expected a folder inside"),
    ],
)
def test_a_run_that_cannot_be_says_why_and_leaves_no_result(tmp_path, settings, message):
    out = tmp_path / "out.ipynb"
    settings = [part for setting in settings for part in ("-p", setting)]
    done = run([sys.executable, "-m", "rqlib.run", "notebooks/01_train.ipynb", out, *settings], outputs=tmp_path / "o")
    assert done.returncode == 1
    assert message in done.stderr, done.stderr[-2000:]
    assert not out.exists()
    assert not list(tmp_path.rglob("rows.parquet"))
    assert json.loads((tmp_path / "out.failed.ipynb").read_text())["cells"]
