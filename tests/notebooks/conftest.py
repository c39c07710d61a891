"""One small run of the whole graph, shared by all tests and by the processes of pytest-xdist."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.notebooks.small import SMALL, command

WORKFLOW = {
    "threads": 1,
    "01_train": [{"model": ["SmallCNN"], "width": [1.0]}, {"model": ["ResNet_18"], "width": [0.25]}],
    "02_quantize": [{"granularity": ["tensor"]}],
    "03_fit": [{"feature": ["js_macs"]}],
    "04_generator": [{"of": {"model": "SmallCNN"}, "generator_seed": [1]}],
    "05_robust": [{"of": {"model": "SmallCNN"}, "norm": ["Linf"]}],
    "06_prune": [{"of": {"model": "SmallCNN"}, "prune_objective": ["natural"]}],
}


def snakemake(folder: Path, *options: str) -> list:
    """The command line that runs the graph of the preset in ``folder``."""
    program = Path(sys.executable).with_name("snakemake")
    return [program, "--cores", "2", "--nolock", *options, "--config", "preset=tiny", f"params={folder}"]


@pytest.fixture(scope="session")
def graph(tmp_path_factory, worker_id) -> Path:
    """A folder with the preset `tiny` and with `outputs`, in which every run of this preset has finished."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "graph"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            (folder / "tiny").mkdir(parents=True)
            for notebook, values in SMALL.items():
                (folder / f"tiny/{notebook}.yaml").write_text(yaml.safe_dump(values))
            (folder / "tiny/workflow.yaml").write_text(yaml.safe_dump(WORKFLOW))
            graph = [sys.executable, "-m", "rqlib.workbook.graph", *snakemake(folder)[1:]]
            done = command(graph, outputs=folder / "outputs")
            (folder / "said.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr[-3000:]]))
    code, said, errors = json.loads((folder / "said.json").read_text())
    assert code == 0, said + errors
    return folder
