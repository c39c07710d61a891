"""Fit a curve, and say how well it predicts a network it has never seen.

R2 in sample is too good. `cross` fits a curve without one network (or one kind of format) and predicts that network.
The error there, not the one in sample, gives the interval of every prediction.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

import numpy
import pandas
from numpy import ndarray
from pandas import DataFrame, Series

from rqlib.core.vocabulary import did_you_mean
from rqlib.prediction import conformal, curves, exact_formats
from rqlib.prediction.features import TARGET, complete

FAMILIES = {
    "rational_2": functools.partial(curves.rational, degree=2),
    "rational_3": functools.partial(curves.rational, degree=3),
    "rational_4": functools.partial(curves.rational, degree=4),
    "logistic": curves.logistic,
    "isotonic": curves.isotonic,
    "polynomial": curves.polynomial,
    "boosting": curves.boosting,
    "blend": curves.blend,
    "identity": curves.identity,
    "mean": curves.mean,
    "lookup": curves.lookup,
}
"""Family -> function (x (N, D), y (N,)) -> `curves.Curve`. The last two are the baselines."""

SEVERAL = ("boosting", "blend", "mean")
"""Families that take more than one feature."""

SINGLE = ("rational_2", "rational_3", "rational_4", "logistic", "polynomial", "isotonic")
"""Families of one feature that `fit_each` compares."""

FOLDS = 5
"""Number of folds where rows have no groups."""

FEWEST = 3
"""Number of rows that a curve needs."""


@dataclass(frozen=True)
class Fit:
    """A curve, its error in sample, and its errors on rows left out.

    Attributes:
        features: names of the columns that the curve reads.
        rows: number of rows that it was fitted to.
        r2, rmse, mae: in sample; the last two in units of y.
        seen: smallest and largest value of each numeric feature (`forecasting.fit`: of the plain ones too).
        calibration: (2, N), for each row the prediction by a curve fitted without the row's group, and the error
            y - prediction.
        groups: (N,), which group each row belongs to, as an integer; None if rows have no groups.
    """

    family: str
    features: tuple[str, ...]
    curve: curves.Curve = field(repr=False)
    rows: int
    r2: float
    rmse: float
    mae: float
    seen: dict[str, tuple[float, float]]
    calibration: ndarray = field(repr=False)
    groups: ndarray | None = field(repr=False, default=None)

    @property
    def parameters(self) -> dict[str, float]:
        """The numbers of the curve, by name."""
        return self.curve.parameters

    @property
    def equation(self) -> str:
        """The curve as text."""
        return self.curve.equation

    def left_out(self) -> tuple[ndarray, ndarray]:
        """y, and the predictions of the same rows by curves fitted without their group."""
        return self.calibration.sum(axis=0), self.calibration[0]

    def predict(self, x, *, level: float = 0.9, distance: ndarray | None = None) -> DataFrame:
        """Columns predicted, lower and upper (`conformal.interval`), one row for each row of x, given as to `fit`."""
        values = self.curve.predict(matrix(x, self.features))
        lower, upper = conformal.interval(values, *self.calibration, level=level, distance=distance, groups=self.groups)
        index = x.index if isinstance(x, DataFrame) else None
        return DataFrame({"predicted": values, "lower": lower, "upper": upper}, index=index)


def fit(x, y, family: str, *, groups=None) -> Fit:
    """Fit one family to all rows.

    Args:
        x: array (N,) or (N, D), or a table with one column per feature.
        y: (N,), the loss.
        groups: (N,), which rows belong together, say the name of the network. Intervals come from curves fitted
            without the row's group; without groups, from curves fitted without one of five interleaved folds.

    Raises:
        ValueError: unknown family, a constant feature, rows without a value, or several features for a family that
            takes one.
    """
    features = tuple(x.columns) if isinstance(x, DataFrame) else _unnamed(x)
    x, y = _checked(matrix(x, features), numpy.asarray(y, dtype=float), family, features)
    codes = numpy.arange(len(y)) % FOLDS if groups is None else numpy.unique(groups, return_inverse=True)[1]
    left_out = _cross(x, y, codes, family, pairs=False)[codes, numpy.arange(len(y))]
    curve = FAMILIES[family](x, y)
    columns = [] if x.dtype == object else zip(features, x.T, strict=True)
    seen = {name: (values.min().item(), values.max().item()) for name, values in columns}
    return Fit(
        family=family,
        features=features,
        curve=curve,
        rows=len(y),
        **scores(y, curve.predict(x)),
        seen=seen,
        calibration=numpy.stack([left_out, y - left_out]),
        groups=None if groups is None else codes,
    )


def fit_each(frame: DataFrame, feature: str, family: str, *, group: str = "title") -> DataFrame:
    """Every network by a curve of its own: a table of `Fit`, one row per network, one column per family.

    ``fit_each(...).map(lambda fit: fit.r2)`` is the table of their R2.

    Args:
        frame: a table from `prediction.table`, with values of ``feature`` and of accuracy_loss in all rows.
        family: the first column; the families of `SINGLE` follow.
    """
    networks = [(str(name), rows) for name, rows in frame.groupby(group, sort=False)]
    few = [name for name, rows in networks if len(rows) < FEWEST]
    if few:
        print(f"fewer than {FEWEST} rows, so no curve: {', '.join(few)}")
    networks = [(name, rows) for name, rows in networks if name not in few]
    families = dict.fromkeys([family, *SINGLE])
    return DataFrame({
        one: {name: fit(rows[[feature]], rows[TARGET], one) for name, rows in networks} for one in families
    })  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Predictions of rows by curves that have not seen their group.

    Attributes:
        frame: the rows. With a column ``distance``, which says how unlike the other networks each row's network is,
            every group gets the intervals of a new network: in exact formats, too (`exact_formats.narrowed`).
        target: the column that was predicted.
        group: the column whose values were left out, one at a time.
        cross: table (groups, rows). The line of group a holds the prediction of every row by a curve fitted without
            group a and without the row's own group; NaN where nothing was left to fit. For the rows of group a this
            is their prediction. The other rows of the line show which errors are made without having seen group a:
            they choose predictors and give the intervals.
    """

    frame: DataFrame = field(repr=False)
    target: str
    group: str
    cross: DataFrame = field(repr=False)

    def table(self, level: float = 0.9) -> DataFrame:
        """The rows, with columns predicted, lower, upper and residual (target - predicted).

        The interval of a group is calibrated on the other groups, each of them predicted without itself and without
        that group; with fewer than three groups it is NaN.
        """
        found = pandas.concat([self._group(name, level) for name in self.cross.index]).loc[self.frame.index]
        return self.frame.assign(**found, residual=self.frame[self.target] - found.predicted)

    def own(self) -> Series:
        """Every row predicted without its own group."""
        groups = self.frame[self.group].astype(str)
        return pandas.concat([self.cross.loc[name, groups == name] for name in self.cross.index])[self.frame.index]

    def _group(self, name: str, level: float) -> DataFrame:
        own = self.frame[self.group].astype(str) == name
        rows, others = self.frame[own], self.frame[~own]
        values, known = self.cross.loc[name, own], self.cross.loc[name, ~own].dropna()
        left = others[self.target] - known
        distance = rows.distance.to_numpy() if "distance" in rows else None
        lower, upper = conformal.interval(
            values.to_numpy(),
            known.to_numpy(),
            left[known.index].to_numpy(),
            level=level,
            distance=distance,
            groups=others.loc[known.index, self.group].astype(str).to_numpy(),
        )
        found = DataFrame({"predicted": values, "lower": lower, "upper": upper})
        return found if distance is None else self._as_new(found, rows, others, level)

    def _as_new(self, found: DataFrame, rows: DataFrame, others: DataFrame, level: float) -> DataFrame:
        """Predictions and intervals of a group as `prediction.forecast` gives them to a new network."""
        whole = found.assign(format=rows.format, distance=rows.distance, upper=found.upper.clip(upper=1))
        return exact_formats.narrowed(whole, others, group=self.group, level=level)[[*found]]


def cross(frame: DataFrame, features: Sequence[str], target: str, group: str, family: str) -> HeldOut:
    """Predict every row by curves that have not seen its group: fits without each group and each pair of groups.

    Rows without a value are dropped; how many is printed.

    Raises:
        ValueError: as `fit`; columns are missing; fewer than two groups.
    """
    frame = complete(frame, [*features, target, group])
    names, codes = numpy.unique(frame[group].astype(str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"expected at least 2 values of {group!r} to leave one out, got {len(names)} ({', '.join(names)}); "
            "add rows of other networks, leave out the values of another column (title), "
            "or read the error in sample (prediction.fit)"
        )
    x, y = _checked(matrix(frame, features), frame[target].to_numpy(float), family, features)
    found = _cross(x, y, codes, family, pairs=True)
    return HeldOut(frame, target, group, DataFrame(found, index=names, columns=frame.index))


def scores(y: ndarray, predicted: ndarray) -> dict[str, float]:
    """How far predictions p are from y: r2, rmse (root mean square error), mae (mean absolute error).

    R2 = 1 - sum (y - p)^2 / sum (y - mean y)^2, NaN where all y are equal.
    """
    left = numpy.asarray(y, float) - numpy.asarray(predicted, float)
    spread = float(numpy.sum((y - numpy.mean(y)) ** 2))
    r2 = 1 - float(left @ left) / spread if spread > 0 else numpy.nan
    return {"r2": r2, "rmse": float(numpy.sqrt(numpy.mean(left**2))), "mae": float(numpy.mean(numpy.abs(left)))}


def coverage(table: DataFrame) -> float:
    """Share of the rows of a `HeldOut.table` whose interval holds the true accuracy_loss; NaN if none has both."""
    known = table.dropna(subset=[TARGET, "lower"])
    return float(known[TARGET].between(known.lower, known.upper).mean())


def _cross(x: ndarray, y: ndarray, codes: ndarray, family: str, *, pairs: bool) -> ndarray:
    """The values of `HeldOut.cross` (G, N); with ``pairs=False`` only those of rows of the line's own group."""
    count = codes.max() + 1
    found = numpy.full((count, len(y)), numpy.nan)
    left_out = combinations_with_replacement(range(count), 2) if pairs else [(a, a) for a in range(count)]
    for a, b in left_out:
        kept = (codes != a) & (codes != b)
        if kept.any():
            curve = FAMILIES[family](x[kept], y[kept])
            for this, other in ((a, b), (b, a)):
                found[this, codes == other] = curve.predict(x[codes == other])
    return found


def matrix(x, features: Sequence[str]) -> ndarray:
    """The features of a table or an array as an array (N, D): of float, or of object for a column of names."""
    values = x[list(features)].to_numpy() if isinstance(x, DataFrame) else numpy.asarray(x)
    values = values[:, None] if values.ndim == 1 else values
    return values.astype(float) if values.dtype.kind in "biuf" else values.astype(object)


def _unnamed(x) -> tuple[str, ...]:
    """Names for the columns of an array: x, or x0, x1, ..."""
    width = 1 if numpy.ndim(x) == 1 else numpy.shape(x)[1]
    return ("x",) if width == 1 else tuple(f"x{column}" for column in range(width))


def _checked(x: ndarray, y: ndarray, family: str, features: Sequence[str]) -> tuple[ndarray, ndarray]:
    """The same arrays, after a check that the family can be fitted to them."""
    if family not in FAMILIES:
        raise ValueError(did_you_mean("family", family, FAMILIES))
    if len(x) != len(y) or len(y) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} rows, as many of x as of y, got {len(x)} and {len(y)}")
    if x.shape[1] > 1 and family not in SEVERAL:
        raise ValueError(f"family {family!r} takes one feature, got {x.shape[1]}; for several: {', '.join(SEVERAL)}")
    if family in ("mean", "lookup"):
        return x, y
    if x.dtype == object:
        raise ValueError(f"family {family!r} takes numbers, got a column of names; for names: lookup")
    bad = int((~numpy.isfinite(numpy.column_stack([x, y]))).any(axis=1).sum())
    if bad:
        raise ValueError(f"expected finite x and y, got {bad} rows without; features.complete drops and counts them")
    for name, values in zip(features, x.T, strict=True):
        if numpy.ptp(values) == 0:
            raise ValueError(f"expected a feature that varies, got {name} = {values[0]:.6g} in all {len(x)} rows")
    return x, y
