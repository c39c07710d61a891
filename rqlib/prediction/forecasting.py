"""What predictors say of a network: the loss in every format, its interval, and the format to take.

A predictor is a family of curves and the columns that it reads. Several predictors give their mean.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy
import pandas
from pandas import DataFrame, Series

from rqlib.prediction import curves, distance, fits
from rqlib.prediction.features import TARGET, complete
from rqlib.prediction.fits import Fit


class Predictor(NamedTuple):
    """The columns that are read, the family of curves, and a name for the two in tables."""

    features: tuple[str, ...]
    family: str
    name: str


def fit(frame: DataFrame, chosen: Sequence[Predictor], *, group: str = "model") -> Fit:
    """The mean of several predictors, fitted to the measured networks of a `prediction.table`, ready for a new one.

    Every predictor is fitted to the rows that have the features of all. Intervals come from curves fitted without the
    row's group, whose name is in the column ``group``. The fit also remembers the range of each plain feature
    (`distance.plain_seen`). Errors are those of `prediction.fit`.
    """
    features = tuple(dict.fromkeys(name for one in chosen for name in one.features))
    frame = complete(frame, [*features, TARGET, group])
    y = frame[TARGET].to_numpy(float)
    members = [fits.fit(frame[list(one.features)], y, one.family, groups=frame[group]) for one in chosen]
    fitted = members[0] if len(members) == 1 else _mean(members, features, fits.matrix(frame, features), y)
    return replace(fitted, seen=distance.plain_seen(frame) | fitted.seen)


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
    - distance: how far the row lies outside what was measured, in ranges of a feature; 0 inside (`distance.beyond`);
    - outside: the features that lie outside;
    - accuracy_loss: the measured loss, if the rows have it.

    Where the distance is above 0, the interval is the largest error of similar predictions of networks left out, times
    1 + distance, and never narrower than inside. The further outside, the more of the errors count
    (`conformal.interval`).

    Raises:
        ValueError: the rows of a `prediction.table` lack a feature of the fit.
    """
    rows = complete(rows, ["format", "bits", *fit.features])
    found = rows[["format", "bits"]].assign(storage=rows.bits / 32)
    if "coded_bits" in rows:
        found["storage_bits"] = rows.coded_bits
    far = distance.measured(rows, fit.seen)
    found = found.join(fit.predict(rows, level=level, distance=far.distance.to_numpy())).join(far)
    found["upper"] = found.upper.clip(upper=1)  # no network loses more than all it has
    if TARGET in rows:
        found[TARGET] = rows[TARGET]
    return found.sort_values(["bits", "predicted"], kind="stable", ignore_index=True)


def recommend(frame: DataFrame, tolerated_loss: float) -> DataFrame:
    """The smallest format within a tolerated loss, by two rules: one row each.

    ``upper end``: the upper end of the interval is within the tolerated loss. ``prediction``: the predicted loss is
    within it. Of equally small formats the one with the least predicted loss is taken. Where no format meets a rule,
    ``met`` is False, and the row shows the format that comes nearest: the one with the lowest upper end, or with the
    lowest prediction. The frame is that of `predict`.

    Raises:
        ValueError: the tolerated loss, a share of the accuracy, is not in [0, 1].
    """
    if not 0 <= tolerated_loss <= 1:
        message = f"expected tolerated_loss as a fraction in [0, 1], got {tolerated_loss}"
        raise ValueError(f"{message}; divide percent by 100")
    ordered = frame.sort_values(["bits", "predicted"], kind="stable")
    rules = {
        "upper end": ("upper", ordered.upper <= tolerated_loss),
        "prediction": ("predicted", ordered.predicted <= tolerated_loss),
    }
    found = [_first(ordered, *rule) for rule in rules.values()]
    return pandas.concat(found).set_axis(pandas.Index(rules, name="rule"))


def verdict(frame: DataFrame, tolerated_loss: float, *, level: float = 0.9) -> str:
    """One sentence: the smallest format that can be promised; where none can, why.

    The frame is that of `predict`, the tolerated loss a share of the accuracy.
    """
    promised, predicted = recommend(frame, tolerated_loss).itertuples()
    limit = f"{tolerated_loss:.1%} of the accuracy"
    if promised.met:
        return f"{promised.format} is the smallest format whose {level:.0%} interval stays within a loss of {limit}."
    guess = f"by the prediction alone, {predicted.format} would do" if predicted.met else "nor does any prediction"
    if frame.upper.isna().all():
        return f"Nothing can be promised: too few networks were measured for an interval; {guess}."
    return (
        f"Nothing can be promised: even the interval of {promised.format} reaches to a loss of {promised.upper:.1%}, "
        f"above {limit}, because networks left out were mispredicted by as much; {guess}. "
        "More measured networks like this one make intervals narrower."
    )


def _first(ordered: DataFrame, column: str, met: Series) -> DataFrame:
    """The first row that meets a rule, or else the one with the least value of the column."""
    nearest = ordered.sort_values(column, kind="stable")
    row = (ordered[met] if met.any() else nearest).head(1)
    row.insert(1, "met", bool(met.any()))
    return row
