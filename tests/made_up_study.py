"""A table of a study and training logs that are made up: the figures that a real study would give, and no training."""

import numpy
import pandas
from pandas import DataFrame

from rqlib.robustness import VARIANTS
from rqlib.training.variants import LEAKY

RADII = (4.0, 8.0, 12.0, 16.0)
CLEAN = dict(zip(VARIANTS, (0.90, 0.88, 0.89, 0.89, 0.87, 0.88, 0.86, 0.86, 0.89), strict=True)) | {LEAKY: 0.94}
ROBUST = dict(zip(VARIANTS, (0.60, 0.80, 0.61, 0.62, 0.79, 0.62, 0.79, 0.78, 0.66), strict=True)) | {LEAKY: 0.82}


def is_trained_at_radius(variant: str) -> bool:
    return "A" in variant.split("+") or variant in ("adversarial", LEAKY)


def table(seeds: int = 10, variants: tuple[str, ...] = (*VARIANTS, LEAKY), radii=RADII) -> DataFrame:
    """As `robustness.study` gives it."""
    rng, rows = numpy.random.default_rng(0), []
    for variant in variants:
        for seed in range(seeds):
            clean = CLEAN[variant] + 0.005 * rng.normal()
            for radius in radii:
                robust = ROBUST[variant] * clean * (1 - radius / 40) + 0.01 * rng.normal()
                rows.append({
                    "variant": variant, "seed": seed,
                    "trained_255": radius if is_trained_at_radius(variant) else numpy.nan, "epsilon_255": radius,
                    "clean_accuracy": clean, "robust_accuracy": robust, "success_rate": 1 - robust / clean,
                })  # fmt: skip
    return DataFrame(rows)


def history(seeds: int = 3, epochs: int = 12) -> DataFrame:
    """As `robustness.histories` gives it, at the radius 8/255."""
    rng, epoch = numpy.random.default_rng(0), numpy.arange(1, epochs + 1)
    parts = [
        DataFrame({
            "variant": variant, "seed": seed, "trained_255": 8.0 if is_trained_at_radius(variant) else numpy.nan,
            "epoch": epoch, "loss": 2.3 * numpy.exp(-epoch / (3 + place)) + 0.1 + 0.02 * rng.random(epochs),
        })
        for place, variant in enumerate(VARIANTS) for seed in range(seeds)
    ]  # fmt: skip
    return pandas.concat(parts, ignore_index=True)
