"""The published tables of nine networks on CIFAR-10, if this checkout has them, and tables that are made up."""

import functools

import pytest
from pandas import DataFrame

from rqlib import prediction
from tests.shared import SHARED

QUANTIZED, ROBUST = SHARED / "published_ptq_cifar10.csv", SHARED / "published_robust_cifar10.csv"
needed = pytest.mark.skipif(not (QUANTIZED.is_file() and ROBUST.is_file()), reason=f"no published tables in {SHARED}")


@functools.cache
def table() -> DataFrame:
    """All 387 rows with every predictor."""
    return prediction.table(prediction.read_table(QUANTIZED), prediction.read_table(ROBUST, ("model", "format")))


def made_up(models: int = 4, formats: int = 12) -> DataFrame:
    """Networks whose loss is an S-curve of what 02 measures, each shifted a little; no randomness."""
    rows = [
        {
            "dataset": "made up", "model": f"net{model}", "width": 1.0, "seed": 0, "run": f"02/net{model}",
            "format": f"{kind}_{bits}", "kind": kind, "bits": bits, "float_accuracy": 0.9,
            "accuracy": 0.9 - 0.8 * distance / (distance + 0.3 + 0.03 * model), "coded_bits": 1000 * bits,
            "js_macs": (1 + model) * distance, "js_params": (1.5 + model) * distance**1.1,
        }
        for model in range(models)
        for kind, size in (("INT", 2.0), ("POT", 3.0))
        for bits in range(2, 2 + formats // 2)
        for distance in [size * 4.0**-bits * 16]
    ]  # fmt: skip
    return DataFrame(rows)


@functools.cache
def losses(models: int) -> DataFrame:
    """The table of `made_up` networks. Do not change it."""
    return prediction.table(made_up(models))


def robust() -> DataFrame:
    """Clean accuracies of one network on images of two generators, in the published form."""
    frame = DataFrame({"generator": ["trained"] * 2 + ["adjusted"] * 2, "format": ["FP32", "INT_4"] * 2})
    return frame.assign(model="a", pseudo_clean=[0.8, 0.2, 0.5, 0.5])


def wide() -> DataFrame:
    """Accuracies of one network, clean and attacked, as `robustness.on_sets` gives them."""
    return DataFrame({
        "format": ["FP32", "INT_4", "INT_8"], "model": "net",
        "test_clean": [0.8, 0.4, 0.8], "trained_clean": [1.0, 0.5, 0.9], "adjusted_clean": [0.9, 0.9, 0.9],
        "test_pgd": [0.4, 0.1, 0.4], "trained_pgd": [0.5, 0.25, 0.5], "adjusted_pgd": [0.0, 0.0, 0.0],
    })  # fmt: skip
