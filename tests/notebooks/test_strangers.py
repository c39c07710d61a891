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
    "04_generator": {
        "formats": ["INT_8"],
        "robust_formats": ["INT_8"],
        "robust_images": 5,
        "pseudo_images": 30,
        "known": "",
    },
    "05_robust": {"test_images": 15, "check_images": 5, "quantized_images": 5, "certified_images": 2},
    "06_prune": {"methods": ["lwm", "scratch"], "hidden_objectives": [], "ablation_images": []},
}


RUNS = [  # (network, notebook): every notebook takes one of them, and 02 takes both, which expect unlike pixels
    ("torchvision", "02_quantize"),
    ("torchvision", "03_fit"),
    ("torchvision", "06_prune"),
    ("batchnorm_after_relu", "02_quantize"),
    ("batchnorm_after_relu", "04_generator"),
    ("batchnorm_after_relu", "05_robust"),
]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, worker_id):
    """Name -> the parameters that open this network; it is trained once for all tests."""
    base = tmp_path_factory.getbasetemp()

    def opened(name: str) -> dict:
        path = (base if worker_id == "master" else base.parent) / f"{name}.pt"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                strangers.write(name, path)
        return {**STRANGERS[name], "weights": str(path)}

    return opened


def run(notebook: str, folder, values: dict) -> str:
    """Run a notebook by papermill; what its cells have printed, and warned of."""
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    line = [sys.executable, "-m", "rqlib.workbook.run", ROOT / f"notebooks/{notebook}.ipynb", folder / "out.ipynb"]
    done = command([*line, "-f", folder / "values.yaml"], outputs=folder / "outputs")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(("name", "notebook"), RUNS)
def test_it_runs_and_says_that_the_network_works(name, notebook, stranger, tmp_path):
    given = stranger(name)
    said = run(notebook, tmp_path, SMALL[notebook] | SMALLER[notebook] | given | {"dataset": "digits"})
    (accuracy,) = re.findall(rf"^{given['network']} on digits: float accuracy ([\d.]+) on", said, re.MULTILINE)
    assert float(accuracy) > 0.8
    assert "no better than guessing" not in said
    assert list(tmp_path.rglob("rows.parquet"))
    if notebook == "06_prune":
        assert "scratch is left out: only the library's own networks can be narrower" in said


@pytest.mark.parametrize("name", STRANGERS)
def test_it_gets_a_baseline_row_without_training(name, stranger, tmp_path):
    """The checkpoint that 01 leaves is the same network, and opens again."""
    values = stranger(name)
    values |= {"model": values.pop("network"), "width": 1.0, "recipe": "none"}
    said = run("01_train", tmp_path, values)
    (path,) = tmp_path.rglob("checkpoint.pt")
    (rows,) = (pandas.read_parquet(found) for found in tmp_path.rglob("rows.parquet"))
    assert rows.epochs_run.tolist() == [0]
    assert f"float accuracy {rows.test_accuracy[0]:.3f} on 360 test images" in said
    opened = {"source": path} if "torchvision" in values["model"] else {"source": values["model"], "weights": path}
    _, about = workbook.network(images=data.load("digits"), **opened)
    assert str(about) in said
