"""What a predictor says of a network never seen: for every format the loss, its interval, and a choice.

A predictor is a family of curves and the columns it reads; several of them give their mean.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy
import pandas
from pandas import DataFrame, Series

from rqlib.prediction import curves, fits
from rqlib.prediction.features import TARGET, complete
from rqlib.prediction.fits import Fit

MARGIN = 0.05
"""By what share of the range seen a feature may lie beyond it and still count as familiar."""


class Predictor(NamedTuple):
    """Columns, the family of curves they go through, and what to call the two."""

    features: tuple[str, ...]
    family: str
    name: str


def fit(frame: DataFrame, chosen: Sequence[Predictor], *, group: str = "model") -> Fit:
    """The mean of predictors, each fitted to all rows that have every feature; ready for a new network.

    Its intervals come from curves fitted without the row's group.

    Raises:
        ValueError: as `prediction.fit`.
    """
    features = tuple(dict.fromkeys(name for one in chosen for name in one.features))
    frame = complete(frame, [*features, TARGET, group])
    y = frame[TARGET].to_numpy(float)
    members = [fits.fit(frame[list(one.features)], y, one.family, groups=frame[group]) for one in chosen]
    return members[0] if len(members) == 1 else _mean(members, features, fits.matrix(frame, features), y)


def _mean(members: list[Fit], features: tuple[str, ...], x: numpy.ndarray, y: numpy.ndarray) -> Fit:
    columns = [[features.index(name) for name in one.features] for one in members]

    def predict(x: numpy.ndarray) -> numpy.ndarray:
        return numpy.mean([one.curve.predict(x[:, some]) for one, some in zip(members, columns, strict=True)], axis=0)

    parameters = {
        f"{index}.{name}": value for index, one in enumerate(members) for name, value in one.parameters.items()
    }
    equation = "loss = mean of: " + "; ".join(f"{', '.join(one.features)}: {one.equation}" for one in members)
    return replace(
        members[0],
        family=" + ".join(one.family for one in members),
        features=features,
        curve=curves.Curve(predict, parameters, equation),
        **fits.scores(y, predict(x)),
        seen={name: span for one in members for name, span in one.seen.items()},
        calibration=numpy.mean([one.calibration for one in members], axis=0),
    )


def predict(rows: DataFrame, fit: Fit, *, level: float = 0.9) -> DataFrame:
    """What a fit says of a network: one row a format, smallest first.

    Columns: format, bits, storage (size of the weights as a share of float32: bits / 32), storage_bits
    (of all weights, where the rows have ``coded_bits``); predicted, lower, upper (fractions of the
    accuracy); outside: the features that lie outside the range the fit has seen, by more than 5% of it;
    and, where the rows know it, the measured accuracy_loss.

    Args:
        rows: a table from `prediction.table` with the fit's features.
        fit: from `fit`.

    Raises:
        ValueError: a feature is missing.
    """
    rows = complete(rows, ["format", "bits", *fit.features])
    found = rows[["format", "bits"]].assign(storage=rows.bits / 32)
    if "coded_bits" in rows:
        found["storage_bits"] = rows.coded_bits
    found = found.join(fit.predict(rows, level=level)).assign(outside=_outside(rows, fit))
    found["upper"] = found.upper.clip(upper=1)  # no network loses more than all it has
    if TARGET in rows:
        found[TARGET] = rows[TARGET]
    return found.sort_values(["bits", "predicted"], kind="stable", ignore_index=True)


def _outside(rows: DataFrame, fit: Fit) -> Series:
    """Names of the features beyond the range seen, comma-separated; empty where all is familiar."""
    names = Series("", index=rows.index)
    for name, (low, high) in fit.seen.items():
        reach = MARGIN * (high - low)
        names += numpy.where(rows[name].between(low - reach, high + reach), "", f"{name}, ")
    return names.str.removesuffix(", ")


def familiarity(frame: DataFrame) -> str:
    """One sentence on a table of `predict`: whether the network lies within what the fit has seen."""
    strange = frame[frame.outside != ""]
    if strange.empty:
        return f"all {len(frame)} formats lie within what the fit has seen"
    shown = [f"{row.format} ({row.outside})" for row in strange.head(5).itertuples()]
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    return (
        f"{len(strange)} of {len(frame)} formats lie outside what the fit has seen, do not trust their intervals: "
        f"{', '.join(shown)}{more}"
    )


def recommend(frame: DataFrame, tolerated_loss: float) -> DataFrame:
    """The smallest format within a tolerated loss: a row by the upper end of the interval, one by the prediction.

    Of equally small formats the one with the least predicted loss. Formats outside what the fit has
    seen are not recommended by their interval. A rule that no format meets has "none" for its format.

    Args:
        frame: from `predict`.
        tolerated_loss: the share of the accuracy that may be lost, in [0, 1].

    Raises:
        ValueError: the tolerated loss is no fraction.
    """
    if not 0 <= tolerated_loss <= 1:
        raise ValueError(
            f"expected tolerated_loss as a fraction in [0, 1], got {tolerated_loss}; divide percent by 100"
        )
    ordered = frame.sort_values(["bits", "predicted"], kind="stable")
    rules = {
        "upper end": (ordered.upper <= tolerated_loss) & (ordered.outside == ""),
        "prediction": ordered.predicted <= tolerated_loss,
    }
    found = [ordered[met].head(1) if met.any() else DataFrame({"format": ["none"]}) for met in rules.values()]
    return pandas.concat(found).set_axis(pandas.Index(rules, name="rule")).reindex(columns=frame.columns)
