"""Small runs of the six notebooks."""

import os
import shutil
import subprocess
from pathlib import Path

import papermill

from rqlib import data, models
from rqlib.core import runtime
from tests.published import made_up

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))
SMALL = {  # the digits preset, made smaller
    "01_train": {"epochs": 2},
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
        "robust_images": 20,
        "formats": ["INT_4", "INT_8"],
        "robust_formats": ["INT_4"],
        "known": "",
    },
    "05_robust": {
        "epsilons_255": [0.0, 8.0],
        "test_images": 60,
        "era_steps": 3,
        "era_restarts": 2,
        "check_images": 20,
        "formats": ["INT_8"],
        "quantized_images": 20,
        "certified_images": 5,
        "certified_255": [1.0],
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


def prepare(notebook: str, path: Path, values: dict) -> Path:
    """Write the notebook with these parameters injected; it is not run."""
    source = ROOT / f"notebooks/{notebook}.ipynb"
    papermill.execute_notebook(source, path, values, prepare_only=True, progress_bar=False)
    return path


def alone(notebook: str, folder: Path) -> dict:
    """Parameters of a small run that needs no other run: what it reads is made in ``folder``."""
    values = dict(SMALL[notebook])
    if notebook == "01_train":
        return values | {"epochs": 1}
    if notebook == "04_generator":
        del values["known"]  # the table that it reads by default
    if notebook == "03_fit":
        made_up().to_csv(folder / "in.csv", index=False)
        return values | {"table": str(folder / "in.csv")}
    spec = data.load("digits").spec
    runtime.seed_everything(0)
    path = models.save(folder / "in.pt", models.build("SmallCNN", spec), "SmallCNN", spec)
    return values | {"network": str(path)}


def environment(outputs: Path) -> dict:
    """For a process whose runs write to ``outputs``."""
    return os.environ | {"RQLIB_OUTPUTS": str(outputs), "RQLIB_ROOT": str(ROOT)}


def command(line: list, *, outputs: Path, timeout: int = 500) -> subprocess.CompletedProcess:
    """Run a command line in the workbook's folder."""
    line = ["timeout", "-s", "KILL", str(timeout), *map(str, line)]
    return subprocess.run(line, env=environment(outputs), capture_output=True, text=True, cwd=ROOT)


def copied(outputs: Path, target: Path) -> Path:
    """The outputs of other runs copied, without their reports."""
    return shutil.copytree(outputs, target, ignore=shutil.ignore_patterns("*.html", "*.ipynb"))
