"""Defended networks go through the notebooks: trained by 01 with several seeds, studied by 05, quantized and pruned."""

import sys

import pandas
import pytest
import yaml

from tests.notebooks.small import ROOT, SMALL, command

QAR = {
    "objective": "n_fgsm",
    "activation": "DTReLU_4",
    "weight_format": "range_8",
    "penalty": "cosine+spectral",
    "trainings": 2,
}
RUNS = {"tiny-original": {"trainings": 2}, "tiny-all": QAR, "tiny-noise": {"noise_std": 0.1}}
SMALLER = {
    "02_quantize": {"formats": ["INT_4", "INT_8"]},
    "05_robust": {"test_images": 12, "check_images": 4, "quantized_images": 10, "epsilons_255": [0, 8]},
    "06_prune": {"methods": ["lwm", "scratch"], "hidden_objectives": [], "ablation_images": []},
}


def run(notebook: str, folder, name: str, values: dict) -> tuple:
    """Run a notebook by papermill; (folder of the run, what it printed)."""
    outputs = folder / "outputs"
    values = {"dataset": "digits", "run_folder": str(outputs / notebook / name), **values}
    (folder / f"{notebook}-{name}.yaml").write_text(yaml.safe_dump(values))
    line = [sys.executable, "-m", "rqlib.workbook.run", ROOT / f"notebooks/{notebook}.ipynb", folder / f"{name}.ipynb"]
    done = command([*line, "-f", folder / f"{notebook}-{name}.yaml"], outputs=outputs)
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs / notebook / name, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the three trainings."""
    folder = tmp_path_factory.mktemp("defended")
    for name, values in RUNS.items():
        run("01_train", folder, name, {"model": "SmallCNN", "width": 1.0, "epochs": 2, "train_images": 400, **values})
    return folder


def test_notebooks_take_defended_networks(trained):
    rows = pandas.read_parquet(trained / "outputs/01_train/tiny-all/rows.parquet")
    assert rows[["variant", "seed"]].values.tolist() == [["Q+A+R", 0], ["Q+A+R", 1]]
    assert rows.test_accuracy.nunique() == 2
    assert (trained / "outputs/01_train/tiny-all/seed1/checkpoint.pt").is_file()

    noisy = str(trained / "outputs/01_train/tiny-noise/checkpoint.pt")
    values = SMALL["05_robust"] | SMALLER["05_robust"] | {"network": noisy, "study": ["tiny-*"]}
    folder, _ = run("05_robust", trained, "study", values)
    study = pandas.read_parquet(folder / "study.parquet")
    networks = study[["variant", "seed"]].drop_duplicates().values.tolist()
    assert sorted(networks) == [["Q+A+R", 0], ["Q+A+R", 1], ["RSE", 0], ["original", 0], ["original", 1]]
    assert (study.robust_accuracy <= study.clean_accuracy + 1e-9).all()
    assert study.without_eot_accuracy.notna().sum() == len(study[study.variant == "RSE"])
    assert "p_holm" in pandas.read_parquet(folder / "tests.parquet")

    quantized = {"network": str(trained / "outputs/01_train/tiny-all/seed1/checkpoint.pt")}
    for notebook in ("02_quantize", "06_prune"):
        folder, said = run(notebook, trained, "all", SMALL[notebook] | SMALLER[notebook] | quantized)
        assert " on digits: float accuracy" in said
        assert len(pandas.read_parquet(folder / "rows.parquet"))
