"""Notebook 03 forecasts a network that it has never seen, from its weights, where nothing was measured."""

import json
import sys

import pandas
import torch

from tests.notebooks.small import command

MODULE = """
from torch import nn

def stranger(num_classes=10, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(4),
        nn.Conv2d(width, 2 * width, 3), nn.ReLU(), nn.BatchNorm2d(2 * width), nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )
"""


def test_a_stranger_is_forecast_from_the_shipped_tables_in_one_command(tmp_path):
    namespace = {}
    exec(MODULE, namespace)
    torch.manual_seed(0)
    (tmp_path / "foreign_networks.py").write_text(MODULE)
    torch.save(namespace["stranger"](width=4).state_dict(), tmp_path / "weights.pt")
    line = [sys.executable, "-m", "rqlib.workbook.run", "notebooks/03_fit.ipynb", tmp_path / "out.ipynb"]
    values = {"network": "foreign_networks:stranger", "weights": tmp_path / "weights.pt", "options": "[width=4]"}
    values |= {"image_size": 32, "num_classes": 10, "family": "rational_2"}
    settings = [part for name, value in values.items() for part in ("-p", f"{name}={value}")]
    done = command([*line, *settings], outputs=tmp_path / "outputs")
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "the shipped table outputs/reference/quantize.csv is used" in said
    assert "foreign_networks:stranger: unlike the measured networks: 43 of 43 formats" in said
    assert "(measured: " in said
    (folder,) = (tmp_path / "outputs/03_fit").iterdir()
    forecast = pandas.read_parquet(folder / "forecast.parquet")
    assert len(forecast) == 43
    assert (forecast.distance > 0).all()
    assert forecast[["predicted", "lower", "upper"]].notna().all(axis=None)
    assert not forecast.isna().all().any()
    assert json.loads((folder / "run.json").read_text())["summary"]["distance"] == forecast.distance.max()
