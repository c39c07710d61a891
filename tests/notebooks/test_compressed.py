"""06 with its longest sections: rivals of one size side by side, and what can be proved of pruned networks."""

import subprocess
import sys
from pathlib import Path

import pandas
import yaml

from tests.notebooks.small import ROOT, alone, command

VALUES = {
    "methods": ["lwm"],
    "hidden_objectives": ["smoothed"],
    "ablation_images": [],
    "finetune_epochs": 2,
    "joint_rivals": ["DA", "AP", "ATMC-8"],
    "joint_ratios": [0.05],
    "joint_compressions": [8],
    "certified_images": 5,
    "certified_255": [0.5, 1],
    "smoothing_sigma": 0.1,
    "smoothing_radius": 0.1,
    "smoothing_draws": [50],
}


def pruned(folder: Path, path: Path, **changes) -> subprocess.CompletedProcess:
    """Run 06 in a folder with these values in place of the small ones; what it makes is at the path."""
    values = alone("06_prune", folder) | changes | {"dataset": "digits", "run_folder": str(path)}
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    line = [sys.executable, "-m", "rqlib.workbook.run", ROOT / "notebooks/06_prune.ipynb", folder / "out.ipynb"]
    return command([*line, "-f", folder / "values.yaml"], outputs=folder / "outputs")


def test_noise_alone_certifies(tmp_path):
    folder = tmp_path / "outputs/06_prune/noise"
    noise = {"smoothing_sigma": 0.1, "smoothing_radius": 0.1, "smoothing_draws": [50]}
    few = {"methods": ["lwm"], "finetune_epochs": 0, "hidden_objectives": [], "ablation_images": [], "test_images": 10}
    done = pruned(tmp_path, folder, **few, **noise)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(pandas.read_parquet(folder / "by_noise.parquet").network) == {"dense", "lwm 0.1"}


def test_a_plan_that_rivals_cannot_have_is_refused_before_anything_is_trained(tmp_path):
    folder = tmp_path / "outputs/06_prune/refused"
    done = pruned(tmp_path, folder, joint_rivals=["AP"], finetune_objective="natural", finetune_epochs=2)
    assert done.returncode != 0
    assert "expected an objective of finetune that attacks images" in done.stderr
    assert [path.name for path in folder.rglob("*.pt")] == ["rows.pt"]


def test_rivals_and_certificates(tmp_path):
    folder = tmp_path / "outputs/06_prune/all"
    done = pruned(tmp_path, folder, **VALUES)
    assert done.returncode == 0, done.stderr[-3000:]
    joint = pandas.read_parquet(folder / "joint.parquet").set_index(["method", "kept"])
    assert len(joint) == 1 + 2 * 2
    assert joint.file_ratio["AP"].iloc[1] > joint.file_ratio["AP"].iloc[0] * 0.4
    assert {path.stem for path in folder.glob("ATMC-8-*.rqz")} == {
        f"ATMC-8-{kept}" for kept in joint.loc["ATMC-8"].index
    }
    assert pandas.read_parquet(folder / "claims.parquet").verdict.tolist() == ["cannot be told"] * 2
    proved = pandas.read_parquet(folder / "certified.parquet")
    assert len(proved) == 2 * 2 * 2
    assert "smoothed_accuracy" in pandas.read_parquet(folder / "hidden.parquet")
    assert {"AP", "ATMC-8"} <= set(pandas.read_parquet(folder / "rows.parquet").method)
