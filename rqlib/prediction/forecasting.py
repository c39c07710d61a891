"""What predictors say of a network: the loss in every format, its interval, and the format to take.

A predictor is a family of curves and the columns that it reads. Several predictors give their mean.
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
"""A feature is familiar up to this share of the range seen beyond its ends."""


class Predictor(NamedTuple):
    """The columns that are read, the family of curves, and a name for the two in tables."""

    features: tuple[str, ...]
    family: str
    name: str


def fit(frame: DataFrame, chosen: Sequence[Predictor], *, group: str = "model") -> Fit:
    """The mean of several predictors, fitted to the measured networks of a `prediction.table`, ready for a new one.

    Every predictor is fitted to the rows that have the features of all. Intervals come from curves fitted without the
    row's group, whose name is in the column ``group``. Errors are those of `prediction.fit`.
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

    numbers = [(index, *pair) for index, one in enumerate(members) for pair in one.parameters.items()]
    parameters = {f"{index}.{name}": value for index, name, value in numbers}
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
    """What a fit says of a network: one row per format, the smallest format first.

    Columns:

    - format, bits, storage: the size of the weights as a share of float32, bits / 32;
    - storage_bits: bits of all weights together, if the rows have ``coded_bits``;
    - predicted, lower, upper: the loss and its interval, as fractions of the accuracy;
    - outside: the features that lie outside the range that the fit has seen, by more than 5% of this range;
    - accuracy_loss: the measured loss, if the rows have it.

    Raises:
        ValueError: the rows of a `prediction.table` lack a feature of the fit.
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
    """For each row the names of the features outside the range seen, comma-separated; empty if there is none."""
    names = Series("", index=rows.index)
    for name, (low, high) in fit.seen.items():
        reach = MARGIN * (high - low)
        names += numpy.where(rows[name].between(low - reach, high + reach), "", f"{name}, ")
    return names.str.removesuffix(", ")


def familiarity(frame: DataFrame) -> str:
    """One sentence about a table of `predict`: whether the network lies within what the fit has seen."""
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
    """The smallest format within a tolerated loss, by two rules: one row each.

    ``upper end``: the upper end of the interval is within the tolerated loss, and the format lies within what the fit
    has seen. ``prediction``: the predicted loss is within it. Of equally small formats the one with the least
    predicted loss is taken. Where no format meets a rule, its format is "none". The frame is that of `predict`.

    Raises:
        ValueError: the tolerated loss, a share of the accuracy, is not in [0, 1].
    """
    if not 0 <= tolerated_loss <= 1:
        message = f"expected tolerated_loss as a fraction in [0, 1], got {tolerated_loss}"
        raise ValueError(f"{message}; divide percent by 100")
    ordered = frame.sort_values(["bits", "predicted"], kind="stable")
    rules = {
        "upper end": (ordered.upper <= tolerated_loss) & (ordered.outside == ""),
        "prediction": ordered.predicted <= tolerated_loss,
    }
    found = [ordered[met].head(1) if met.any() else DataFrame({"format": ["none"]}) for met in rules.values()]
    return pandas.concat(found).set_axis(pandas.Index(rules, name="rule")).reindex(columns=frame.columns)
