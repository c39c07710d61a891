"""06 with its longest sections: rivals of one size side by side, and what can be proved of pruned networks."""

import sys

import pandas
import yaml

from tests.notebooks.small import ROOT, SMALL, alone, command

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


def test_rivals_and_certificates(tmp_path):
    folder = tmp_path / "outputs/06_prune/all"
    values = SMALL["06_prune"] | VALUES | alone("06_prune", tmp_path) | VALUES
    values |= {"dataset": "digits", "run_folder": str(folder)}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    line = [sys.executable, "-m", "rqlib.workbook.run", ROOT / "notebooks/06_prune.ipynb", tmp_path / "out.ipynb"]
    done = command([*line, "-f", tmp_path / "values.yaml"], outputs=tmp_path / "outputs")
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
