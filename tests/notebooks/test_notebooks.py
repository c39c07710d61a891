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
import yaml

from rqlib import data, models, workbook
from rqlib.core import runtime
from tests.published import made_up

ROOT = Path(__file__).parents[2]
SMALL = {  # the digits preset, made smaller
    "01_train": {"epochs": 1},
    "02_quantize": {
        "formats": ["INT_4", "INT_8", "POT_4", "FLOAT_8_E4"],
        "calibration_images": 64,
        "test_images": 100,
        "sensitivity_formats": ["INT_2", "INT_8"],
        "sensitivity_images": 50,
    },
    "03_fit": {"family": "rational_2"},
    "04_generator": {
        "epochs": 1,
        "adjust_rounds": 1,
        "pseudo_images": 100,
        "robust_images": 40,
        "formats": ["INT_4", "INT_8", "POT_4", "FLOAT_8_E4"],
        "robust_formats": ["INT_4", "INT_8"],
    },
    "05_robust": {
        "epsilons_255": [0.0, 8.0],
        "test_images": 60,
        "era_steps": 3,
        "era_restarts": 2,
        "check_images": 20,
        "formats": ["INT_8"],
        "quantized_images": 20,
    },
    "06_prune": {
        "methods": ["lwm", "hydra", "scratch"],
        "kept": [0.1],
        "train_images": 200,
        "test_images": 40,
        "era_steps": 3,
        "era_restarts": 1,
        **dict.fromkeys(["prune_epochs", "finetune_epochs", "pretrain_epochs", "attack_steps"], 1),
        "hidden_objectives": ["natural"],
        "ablation_images": [100],
        "ablation_epochs": [],
    },
}
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))


def small(notebook: str, folder: Path) -> dict:
    """Parameters of a small run of a notebook; what it reads is made in ``folder``."""
    values = dict(SMALL[notebook])
    if notebook in ("02_quantize", "04_generator", "05_robust", "06_prune"):
        spec = data.load("digits").spec
        runtime.seed_everything(0)
        path = models.save(folder / "in.pt", models.build("SmallCNN", spec), "SmallCNN", spec)
        values["checkpoint"] = os.fspath(path)
    if notebook == "03_fit":
        made_up().to_csv(folder / "in.csv", index=False)
        values["table"] = os.fspath(folder / "in.csv")
    return values


def prepare(notebook: str, folder: Path) -> Path:
    """The notebook with these parameters, not yet run."""
    path = folder / f"{notebook}.ipynb"
    source, values = ROOT / f"notebooks/{notebook}.ipynb", small(notebook, folder)
    papermill.execute_notebook(source, path, values, prepare_only=True, progress_bar=False)
    return path


def run(command: list, *, outputs: Path, timeout: int = 500, **settings) -> subprocess.CompletedProcess:
    environment = os.environ | {"RQLIB_OUTPUTS": os.fspath(outputs), "RQLIB_ROOT": os.fspath(ROOT)}
    command = ["timeout", "-s", "KILL", str(timeout), *map(os.fspath, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, **settings)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_nbval_runs_and_compares(notebook, tmp_path):
    prepared = prepare(notebook, tmp_path)
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


def test_the_snakefile_runs_the_graph_once_and_then_nothing(tmp_path):
    preset, outputs = tmp_path / "tiny", tmp_path / "outputs"
    preset.mkdir()
    (preset / "01_train.yaml").write_text("dataset: digits\nepochs: 2\nwidth: 1.0\n")
    (preset / "02_quantize.yaml").write_text(yaml.safe_dump({"dataset": "digits", **SMALL["02_quantize"]}))
    (preset / "03_fit.yaml").write_text("family: rational_2\n")
    (preset / "04_generator.yaml").write_text(yaml.safe_dump({"dataset": "digits", **SMALL["04_generator"]}))
    (preset / "05_robust.yaml").write_text(yaml.safe_dump({"dataset": "digits", **SMALL["05_robust"]}))
    (preset / "06_prune.yaml").write_text(yaml.safe_dump({"dataset": "digits", **SMALL["06_prune"]}))
    workflow = {
        "threads": 1,
        "01_train": [{"model": ["SmallCNN", "CNN_small"], "seed": [3]}],
        "02_quantize": [{"granularity": ["tensor"]}],
        "03_fit": [{"feature": ["js_macs"]}, {"feature": ["js_params"], "source": ["04_generator"]}],
        "04_generator": [{"generator_seed": [1]}],
        "05_robust": [{"norm": ["Linf"]}],
        "06_prune": [{"of": {"model": "SmallCNN"}, "prune_objective": ["natural"]}],
    }
    (preset / "workflow.yaml").write_text(yaml.safe_dump(workflow))
    command = [Path(sys.executable).with_name("snakemake"), "--cores", "2", "--nolock"]
    command += ["--config", "preset=tiny", f"params={tmp_path}"]
    done = run(command, outputs=outputs)
    assert done.returncode == 0, done.stderr[-3000:]
    trained, quantized = (workbook.collect(notebook, outputs) for notebook in ("01_train", "02_quantize"))
    assert sorted(trained[["model", "seed", "epochs_run"]].to_numpy().tolist()) == [
        ["CNN_small", 3, 2],
        ["SmallCNN", 3, 2],
    ]
    assert trained.test_accuracy.between(0.05, 1).all()
    assert sorted(quantized.model.unique()) == ["CNN_small", "SmallCNN"]
    assert len(quantized) == 2 * len(SMALL["02_quantize"]["formats"])
    assert quantized[["accuracy", "js_macs", "relative_error_macs"]].notna().all().all()
    assert workbook.collect("03_fit", outputs).held_out_r2.le(1).all()
    generated = workbook.collect("04_generator", outputs)
    assert sorted(generated.model.unique()) == ["CNN_small", "SmallCNN"]
    assert len(generated) == 2 * (1 + len(SMALL["04_generator"]["formats"]))
    assert generated.pseudo_accuracy_loss_boundary.le(1).sum() == 2 * len(SMALL["04_generator"]["formats"])
    attacked = workbook.collect("05_robust", outputs).pivot(index="model", columns="attack", values="accuracy")
    assert sorted(attacked.index) == ["CNN_small", "SmallCNN"]
    assert (attacked["PGD-3x2"] <= attacked["none"]).all()
    assert (attacked["all of these"] <= attacked.drop(columns="all of these").min(axis=1)).all()
    transfer = pandas.read_parquet(outputs / "05_robust/tiny-SmallCNN-3-Linf/transfer.parquet")
    assert transfer.shape == (2, 2), "the other network of the preset attacks this one"
    pruned = workbook.collect("06_prune", outputs)
    assert pruned.model.unique().tolist() == ["SmallCNN"]
    assert {"dense", "lwm", "hydra", "scratch", "hydra INT_8"} <= set(pruned.method)
    folder = outputs / "01_train/tiny-SmallCNN-3"
    made = {path.name for path in folder.iterdir()}
    assert {"params.yaml", "run.json", "rows.parquet", "history.parquet", "checkpoint.pt"} <= made
    assert {"last.pt", "notebook.ipynb", "report.html"} <= made
    assert pandas.read_parquet(folder / "history.parquet").loss.notna().all()
    again = run(command, outputs=outputs)
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
    done = run(
        [sys.executable, "-m", "rqlib.workbook.run", "notebooks/01_train.ipynb", out, *settings], outputs=tmp_path / "o"
    )
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
    done = run(
        [sys.executable, "-m", "rqlib.workbook.run", "notebooks/01_train.ipynb", out, *settings], outputs=tmp_path / "o"
    )
    assert done.returncode == 1
    assert message in done.stderr, done.stderr[-2000:]
    assert not out.exists()
    assert not list(tmp_path.rglob("rows.parquet"))
    assert json.loads((tmp_path / "out.failed.ipynb").read_text())["cells"]
