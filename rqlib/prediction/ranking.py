"""Which predictor works on a network never seen: one trial for all.

Each predictor is fitted without one network and predicts it. One line of the table chooses as well: for
every network left out it takes the mean of the predictors that do best on the others, each of these
left out in turn (nested selection), so that the choice has not seen the network it is judged on.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy
import pandas
from pandas import DataFrame

from rqlib.prediction import conformal, fits
from rqlib.prediction import features as features_
from rqlib.prediction.features import PSEUDO, TARGET
from rqlib.prediction.fits import HeldOut
from rqlib.prediction.forecasting import Predictor

BEST = 5
CHOSEN = f"mean of the best {BEST}, chosen without the network"
RESAMPLES = 1000
BASELINES = (Predictor(("format",), "mean", "mean loss"), Predictor(("format",), "lookup", "format name only"))


def candidates(frame: DataFrame) -> list[Predictor]:
    """The two baselines; every feature of the table alone, through two or three families; several together."""
    names = features_.names(frame)
    lost = tuple(name for name in names if name.startswith(PSEUDO))
    relative = tuple(name for name in names if name.endswith(features_.NORMALIZED))
    single = [
        Predictor((name,), family, f"{features_.short(name)}: {family}")
        for name in names
        for family in ("isotonic", "rational_3", *(["logistic", "identity"] if name in lost else []))
    ]
    together = {
        "all pseudo-losses": lost,
        "similarities / INT_4": relative,
        "pseudo-loss and similarities / INT_4": lost[:1] + relative if lost else (),
    }
    several = [
        Predictor(features, family, f"{title}: {family}")
        for title, features in together.items()
        for family in ("boosting", *(["blend"] if features[:1] == lost[:1] else []))
        if len(features) > 1
    ]
    return [*BASELINES, *single, *several]


class Trial(NamedTuple):
    """The table, best first; each predictor's predictions of rows left out; those of the choice, where there is one."""

    board: DataFrame
    held_out: dict[Predictor, HeldOut]
    chosen: HeldOut | None

    def best(self, columns: Iterable[str], *, without: str | None = None) -> tuple[Predictor, ...]:
        """The `BEST` predictors for a new network of which these columns are known, by their squared error left out.

        Args:
            without: a group that is the new network itself: then chosen by the others, predicted without it.

        Raises:
            ValueError: no predictor but the baselines reads these columns alone.
        """
        known = set(columns)
        rivals = {one: trial for one, trial in self.held_out.items() if _is_rival(one) and known >= set(one.features)}
        if not rivals:
            wanted = sorted({name for one in self.held_out if _is_rival(one) for name in one.features})
            raise ValueError(f"expected a network with some of the columns {', '.join(wanted)}, got none of them")
        rows, first = _common(rivals), next(iter(rivals.values()))
        others = first.frame.loc[rows, first.group].astype(str) != without
        return _best(rivals, rows[others], without)


def leaderboard(
    frame: DataFrame, chosen: Sequence[Predictor] | None = None, *, group: str = "model", level: float = 0.9
) -> Trial:
    """Every predictor in sample and leaving one group out, sorted by the held-out R2.

    Columns: predictor, features, rows, groups; in_sample_r2, in_sample_mae; held_out_r2 with its 95%
    interval over resampled groups (r2_lower, r2_upper), held_out_mae; coverage of the intervals of
    ``level`` and their mean width; kind_out_r2 (leaving out one kind of format: INT, POT, FLOAT).
    A predictor is tried on the rows that have its features; how many lack one is printed.

    Raises:
        ValueError: as `fits.cross`.
    """
    frame = features_.complete(frame, [TARGET, group])
    chosen = [*(candidates(frame) if chosen is None else chosen)]
    missing = features_.missing(frame, [name for one in chosen for name in one.features])
    if missing:
        print(f"of {len(frame)} rows some have no value and are left out where it is needed: {missing}")
    tables = {one: frame.dropna(subset=list(one.features)) for one in chosen}
    trials = {one: fits.cross(tables[one], one.features, TARGET, group, one.family) for one in chosen}
    lines = [{"predictor": one.name} | _in_sample(tables[one], [one]) | _left_out(trials[one], level) for one in chosen]
    rivals, nested = {one: trial for one, trial in trials.items() if _is_rival(one)}, None
    if len(rivals) > 1 and frame[group].nunique() > 2:
        nested = choose(rivals)
        in_sample = _in_sample(frame.loc[nested.frame.index], _best(rivals, nested.frame.index))
        lines.append({"predictor": CHOSEN} | in_sample | _left_out(nested, level))
    board = DataFrame(lines).sort_values("held_out_r2", ascending=False, kind="stable", ignore_index=True)
    return Trial(board, trials, nested)


def _is_rival(one: Predictor) -> bool:
    return one.family not in ("mean", "lookup")


def choose(trials: dict[Predictor, HeldOut]) -> HeldOut:
    """For every group, the mean of the `BEST` trials with the least squared error on the other groups.

    The others are predicted without the group and without their own, so neither the choice nor the
    interval has seen the group (nested selection). Rows that not every trial has are left out; the
    frame has the column ``chosen``: names of the trials.
    """
    rows, first = _common(trials), next(iter(trials.values()))
    frame = first.frame.loc[rows]
    groups = frame[first.group].astype(str)
    picked = {name: _best(trials, rows[groups != name], name) for name in groups.unique()}
    lines = {name: sum(trials[one].cross.loc[name, rows] for one in best) / len(best) for name, best in picked.items()}
    names = {name: "; ".join(one.name for one in best) for name, best in picked.items()}
    return HeldOut(frame.assign(chosen=groups.map(names)), first.target, first.group, DataFrame(lines).T)


def _common(trials: dict[Predictor, HeldOut]) -> pandas.Index:
    """Rows that every trial has."""
    return functools.reduce(pandas.Index.intersection, (trial.frame.index for trial in trials.values()))


def _best(trials: dict[Predictor, HeldOut], rows: pandas.Index, left_out: str | None = None) -> tuple[Predictor, ...]:
    """The predictors with the least squared error on rows predicted without their own group, and without another."""

    def error(one: Predictor) -> float:
        trial = trials[one]
        predicted = trial.own() if left_out is None else trial.cross.loc[left_out]
        return float(((trial.frame[trial.target] - predicted)[rows] ** 2).mean())

    return tuple(sorted(trials, key=error)[:BEST])


def _in_sample(frame: DataFrame, chosen: Sequence[Predictor]) -> dict:
    """What is known before a network is left out; for a single predictor also the R2 leaving out one kind of format."""
    features = tuple(dict.fromkeys(name for one in chosen for name in one.features))
    y, kinds = frame[TARGET].to_numpy(float), numpy.nan
    curves = [fits.FAMILIES[one.family](fits.matrix(frame, one.features), y) for one in chosen]
    predicted = [curve.predict(fits.matrix(frame, one.features)) for curve, one in zip(curves, chosen, strict=True)]
    if len(chosen) == 1 and "kind" in frame and frame.kind.nunique() > 1:
        kinds = _scores(fits.cross(frame, features, TARGET, "kind", chosen[0].family).table())["r2"]
    score = fits.scores(y, numpy.mean(predicted, axis=0))
    return {
        "features": ", ".join(features),
        "in_sample_r2": score["r2"],
        "in_sample_mae": score["mae"],
        "kind_out_r2": kinds,
    }


def _left_out(trial: HeldOut, level: float) -> dict:
    """How well rows of a network never seen are predicted, and how often their interval is right."""
    table = trial.table(level)
    score = _scores(table)
    lower, upper = _r2_interval(table, trial.group)
    return {
        "rows": len(table),
        "groups": table[trial.group].nunique(),
        "held_out_r2": score["r2"],
        "r2_lower": lower,
        "r2_upper": upper,
        "held_out_mae": score["mae"],
        "coverage": conformal.coverage(*(table[column].to_numpy() for column in (TARGET, "lower", "upper"))),
        "width": (table.upper - table.lower).mean(),
    }


def _scores(table: DataFrame) -> dict[str, float]:
    return fits.scores(table[TARGET], table.predicted)


def _r2_interval(table: DataFrame, group: str) -> tuple[float, float]:
    """95% interval of the pooled R2 when the groups are drawn again with replacement (cluster bootstrap, seed 0)."""
    y, left = table[TARGET], table.residual
    columns = DataFrame({"rows": 1.0, "y": y, "squares": y**2, "error": left**2})
    sums = columns.groupby(table[group].astype(str)).sum().to_numpy()
    drawn = numpy.random.default_rng(0).multinomial(len(sums), numpy.full(len(sums), 1 / len(sums)), RESAMPLES)
    rows, y, squares, error = (drawn @ sums).T
    return tuple(numpy.quantile(1 - error / (squares - y**2 / rows), [0.025, 0.975]))
