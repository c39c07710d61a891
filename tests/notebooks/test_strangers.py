"""Notebooks 02 to 06 take a network that 01 has not trained: of torchvision, and of a function of the user's."""

import re
import sys

import pandas
import pytest
import yaml
from filelock import FileLock

from rqlib import data, workbook
from tests.notebooks import strangers
from tests.notebooks.small import ROOT, SMALL, command
from tests.notebooks.strangers import STRANGERS

SMALLER = {  # beside the values in SMALL
    "02_quantize": {"formats": ["INT_8"], "sensitivity_formats": ["INT_4"], "test_images": 50},
    "03_fit": {},
    "04_generator": {"formats": ["INT_8"], "robust_formats": ["INT_8"], "robust_images": 5, "pseudo_images": 30},
    "05_robust": {"test_images": 15, "check_images": 5, "quantized_images": 5, "certified_images": 2},
    "06_prune": {"methods": ["lwm", "scratch"], "hidden_objectives": [], "ablation_images": []},
}


@pytest.fixture(scope="module", params=STRANGERS)
def stranger(request, tmp_path_factory, worker_id) -> dict:
    """The parameters that open a network; it is trained once for all tests."""
    base = tmp_path_factory.getbasetemp()
    path = (base if worker_id == "master" else base.parent) / f"{request.param}.pt"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            strangers.write(request.param, path)
    return {**STRANGERS[request.param], "weights": str(path)}


def run(notebook: str, folder, values: dict) -> str:
    """Run a notebook by papermill; what its cells have printed, and warned of."""
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    line = [sys.executable, "-m", "rqlib.workbook.run", ROOT / f"notebooks/{notebook}.ipynb", folder / "out.ipynb"]
    done = command([*line, "-f", folder / "values.yaml"], outputs=folder / "outputs")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("notebook", SMALLER)
def test_it_runs_and_says_that_the_network_works(notebook, stranger, tmp_path):
    values = SMALL[notebook] | SMALLER[notebook] | stranger | {"dataset": "digits"}
    said = run(notebook, tmp_path, values)
    (accuracy,) = re.findall(rf"^{stranger['network']} on digits: float accuracy ([\d.]+) on", said, re.MULTILINE)
    assert float(accuracy) > 0.8
    assert "no better than guessing" not in said
    assert list(tmp_path.rglob("rows.parquet"))
    if notebook == "06_prune":
        assert "scratch is left out: only the library's own networks can be narrower" in said


def test_it_gets_a_baseline_row_without_training(stranger, tmp_path):
    """The checkpoint that 01 leaves is the same network, and opens again."""
    values = dict(stranger)
    values |= {"model": values.pop("network"), "width": 1.0, "recipe": "none"}
    said = run("01_train", tmp_path, values)
    (path,) = tmp_path.rglob("checkpoint.pt")
    (rows,) = (pandas.read_parquet(found) for found in tmp_path.rglob("rows.parquet"))
    assert rows.epochs_run.tolist() == [0]
    assert f"float accuracy {rows.test_accuracy[0]:.3f} on 360 test images" in said
    opened = {"source": path} if "torchvision" in values["model"] else {"source": values["model"], "weights": path}
    _, about = workbook.network(images=data.load("digits"), **opened)
    assert str(about) in said
