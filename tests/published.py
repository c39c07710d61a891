"""The published tables of nine networks on CIFAR-10, where this checkout has them."""

import functools
import os
from pathlib import Path

import pytest
from pandas import DataFrame

from rqlib.prediction import features

SHARED = Path(os.environ.get("RQLIB_SHARED") or Path(__file__).parents[2] / "shared") / "data"
QUANTIZED, ROBUST = SHARED / "published_ptq_cifar10.csv", SHARED / "published_robust_cifar10.csv"
needed = pytest.mark.skipif(not (QUANTIZED.is_file() and ROBUST.is_file()), reason=f"no published tables in {SHARED}")


@functools.cache
def table() -> DataFrame:
    """All 387 rows with every predictor."""
    pseudo = features.pseudo_losses(features.read_csv(ROBUST, ("model", "format")))
    return features.table(features.read_csv(QUANTIZED), pseudo)


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
