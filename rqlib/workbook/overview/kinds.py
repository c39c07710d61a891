"""What can be done to a network, what is measured of it, and the rows that the figures of a run become."""

from collections.abc import Iterator
from math import nan

from rqlib.certification.cascade import BOUNDS
from rqlib.workbook.overview.networks import Source

SHARES = ("clean", "robust", "certified", "float_clean", "float_robust")
"""Accuracies: without an attack, under attack, proved; of the float network on the same images, clean and attacked."""
METRICS = (*SHARES, "predicted", "bits", "macs", "milliseconds")
"""And the accuracy that was predicted; size, operations, and time for 64 images."""
_IN_A_BALL = ("robust", "certified", "float_robust")

FLOAT, FORMAT, MIX, UNSEEN = "float", "number format", "mix of formats", "calibrated without data"
PRUNED, CHANNELS, JOINT, DEFENDED = "pruned", "channels removed", "compressed jointly", "trained otherwise"
KINDS = (FLOAT, FORMAT, MIX, UNSEEN, PRUNED, CHANNELS, JOINT, DEFENDED)
"""Kinds of treatments."""

COLUMNS = ["network", "kind", "treatment", "metric", "within", "value", "images", "low", "high", "how", "seed"]
"""Of the rows of `each`; `measurements.table` says what they hold."""


def ball(epsilon_255: float, norm: str = "Linf") -> str:
    """A radius in words: ``16/255``, or ``L2 16/255``."""
    return f"{'' if norm == 'Linf' else f'{norm} '}{epsilon_255:g}/255"


def each(source: Source, kind: str, treatment: str, *, images=nan, within="", how="", **figures) -> Iterator[dict]:
    """One row per figure of one treatment, ``clean=0.98, bits=1000``; None is left out."""
    values = source.parameters
    run_seed = None if kind in (FLOAT, FORMAT, MIX) else values.get("seed", values.get("generator_seed"))
    seed = (source.trained.get("seed"), run_seed)
    for metric, value in figures.items():
        if value is not None:
            where = {"within": within, "how": how} if metric in _IN_A_BALL else {"within": "", "how": ""}
            shares = {"images": _fitting(images, value)} if metric in SHARES else {}
            row = {"network": source.network, "kind": kind, "treatment": treatment, "seed": seed, "metric": metric}
            yield {**row, "value": value, **where, **shares}


def _fitting(images: float, share: float) -> float:
    """The number of images if the share can be one of so many; else NaN."""
    hits = share * images
    return images if images == images and abs(hits - round(hits)) < 0.01 else nan


def proved(
    source: Source, kind: str, treatment: str, row: dict, images: float, whole: dict | None = None
) -> Iterator[dict]:
    """At one radius: accuracy, that under PGD, and the share of images that the best of the bounds proves.

    ``whole`` is the row of the float network at this radius, on the same images.
    """
    where = {"images": images, "within": ball(row["epsilon_255"])}
    clean, robust = {"clean": row["clean"]}, {"robust": row["PGD"]}
    if whole:
        clean, robust = clean | {"float_clean": whole["clean"]}, robust | {"float_robust": whole["PGD"]}
    yield from each(source, kind, treatment, images=images, **clean)
    if row["epsilon_255"] == source.parameters.get("epsilon_255"):
        yield from each(source, kind, treatment, how="PGD-50", **robust, **where)
    shares = {name: row[name] for name in BOUNDS if row.get(name) is not None}
    if shares:
        best = max(shares, key=shares.get)
        yield from each(source, kind, treatment, certified=shares[best], how=best, **where)


def or_nan(value: float | None) -> float:
    """The number; NaN for None."""
    return nan if value is None else value
