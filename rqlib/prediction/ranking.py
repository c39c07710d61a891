"""Which predictor works on a network that it has never seen: one trial for all.

Every predictor is fitted without one network and predicts that network, in turn for all networks. One line of the
table chooses among the predictors as well: for each network left out it takes the mean of the predictors that do best
on the other networks, each of these left out in turn (nested selection). So the choice has not seen the network that
it is judged on.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy
import pandas
from pandas import DataFrame

from rqlib.prediction import conformal, distance, fits
from rqlib.prediction import features as features_
from rqlib.prediction.features import TARGET
from rqlib.prediction.fits import HeldOut
from rqlib.prediction.forecasting import Predictor
from rqlib.prediction.published import PSEUDO

BEST = 5
"""So many predictors, the best, give their mean."""
CHOSEN = f"mean of the best {BEST}, chosen without the network"
RESAMPLES = 1000
BASELINES = (Predictor(("format",), "mean", "mean loss"), Predictor(("format",), "lookup", "format name only"))


def candidates(frame: DataFrame) -> list[Predictor]:
    """All predictors that a table allows.

    The two baselines, every feature alone through two or three families, and several features together.
    """
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


def considered(chosen: Iterable[Predictor], columns: Iterable[str]) -> list[Predictor]:
    """The predictors that may forecast a network of which these columns are known.

    If losses on generated images are among the columns, only predictors that read one are: the similarity of weights
    cannot see what it costs that signals exceed their ranges, and generated images can.

    Raises:
        ValueError: every predictor (the baselines do not count) reads a column that is not known.
    """
    rivals, known = [one for one in chosen if _is_rival(one)], set(columns)
    readable = [one for one in rivals if known >= set(one.features)]
    if not readable:
        wanted = sorted({name for one in rivals for name in one.features})
        raise ValueError(f"expected a network with some of the columns {', '.join(wanted)}, got none of them")
    return [one for one in readable if reads_loss(one)] or readable


def reads_loss(one: Predictor) -> bool:
    """Whether a predictor reads the loss on generated images."""
    return any(name.startswith(PSEUDO) for name in one.features)


class Trial(NamedTuple):
    """The result of `leave_out`.

    Attributes:
        frame: the rows that were predicted.
        held_out: each predictor's predictions of rows left out.
        chosen: those of the mean of the best predictors, chosen without the group left out (`choose`); None with fewer
            than two predictors, or fewer than three networks of which the features of all are known.
    """

    frame: DataFrame
    held_out: dict[Predictor, HeldOut]
    chosen: HeldOut | None

    def best(self, columns: Iterable[str], *, without: str | None = None) -> tuple[Predictor, ...]:
        """The `BEST` of the `considered` predictors, by their squared error on rows left out.

        Args:
            columns: the columns that are known of the new network.
            without: name of the group that plays the new network. The choice then rests on the other groups, each
                predicted without this one. One other group leaves nothing to choose by: then all predictors are taken.

        Raises:
            ValueError: as `considered`.
        """
        rivals = self._rivals(columns)
        rows, first = _common(rivals), next(iter(rivals.values()))
        others = first.frame.loc[rows, first.group].astype(str) != without
        return _best(rivals, rows[others], without)

    def judged(self, columns: Iterable[str]) -> HeldOut:
        """How good a forecast of a network with these columns is: each measured network predicted as if it were new.

        Predictions are the mean of the best predictors chosen without the network (`best`). The column ``distance`` of
        the frame says how unlike the others each network is, so that its interval is as wide as it would be for a new
        network; ``outside`` says in what.
        """
        columns = [*columns]
        found = choose(self._rivals(columns))
        groups = found.frame[found.group].astype(str)
        far = [self._distance(found.frame, groups == name, columns, name) for name in found.cross.index]
        return replace(found, frame=found.frame.assign(**pandas.concat(far).loc[found.frame.index]))

    def _rivals(self, columns: Iterable[str]) -> dict[Predictor, HeldOut]:
        return {one: self.held_out[one] for one in considered(self.held_out, columns)}

    def _distance(self, frame: DataFrame, own: pandas.Series, columns: list[str], name: str) -> DataFrame:
        """How far the rows of one group lie outside the others, in the features of the predictors chosen without it."""
        names = dict.fromkeys(feature for one in self.best(columns, without=name) for feature in one.features)
        others = frame[~own]
        seen = {feature: (others[feature].min(), others[feature].max()) for feature in names}
        return distance.measured(frame[own], distance.plain_seen(others) | seen)


def leave_out(
    frame: DataFrame,
    chosen: Sequence[Predictor] | None = None,
    *,
    group: str = "model",
    columns: Iterable[str] | None = None,
) -> Trial:
    """Predict every row by every predictor, fitted without the row's group. A `leaderboard` compares the predictors.

    A predictor is tried on the rows that have its features; how many rows lack one is printed.

    Args:
        frame: a table from `prediction.table`.
        chosen: the predictors; all of `candidates` by default.
        group: the column whose values are left out, one at a time. Errors are those of `fits.cross`.
        columns: of a new network, where the trial serves its forecast alone; then the `considered` predictors are
            tried, and no others.

    Raises:
        ValueError: as `fits.cross` and `considered`; columns are missing.
    """
    frame = features_.complete(frame, [TARGET, group])
    chosen = _comparable(frame, [*(candidates(frame) if chosen is None else chosen)], group)
    chosen = chosen if columns is None else considered(chosen, columns)
    missing = features_.missing(frame, [name for one in chosen for name in one.features])
    if missing:
        print(f"of {len(frame)} rows some have no value and are left out where it is needed: {missing}")
    tables = {one: frame.dropna(subset=list(one.features)) for one in chosen}
    held_out = {one: fits.cross(tables[one], one.features, TARGET, group, one.family) for one in chosen}
    rivals = _without_baselines(held_out)
    several = len(rivals) > 1 and frame.loc[_common(rivals), group].nunique() > 2
    return Trial(frame, held_out, choose(rivals) if several else None)


def leaderboard(trial: Trial, *, level: float = 0.9) -> DataFrame:
    """Every predictor, judged in sample and on groups left out; the farthest above the format's name comes first.

    Scores on different rows cannot be compared, but each can be with that of the format's name on the same rows. One
    line per predictor, and one of the mean of the best, with the columns

    - predictor, features, rows, groups;
    - above_name: held_out_r2 less that of "format name only" on the same rows;
    - in_sample_r2, in_sample_mae;
    - held_out_r2 with its 95% interval over resampled groups (r2_lower, r2_upper), and held_out_mae;
    - interval_level: what the intervals are made for, with few groups less than asked for (`conformal.promised`);
      coverage: the share of rows left out that they hold; width: their mean width;
    - kind_out_r2: R2 on kinds of format (INT, POT, FLOAT) left out.

    Args:
        level: share of the rows left out that their intervals shall hold.
    """
    lines = [
        {"predictor": one.name} | _in_sample(predicted.frame, [one]) | _left_out(predicted, level)
        for one, predicted in trial.held_out.items()
    ]
    tried = [*trial.held_out.values()]
    if trial.chosen:
        rows = trial.chosen.frame.index
        best = _best(_without_baselines(trial.held_out), rows)
        in_sample = _in_sample(trial.frame.loc[rows], best)
        lines.append({"predictor": CHOSEN} | in_sample | _left_out(trial.chosen, level))
        tried.append(trial.chosen)
    board = DataFrame(lines)
    by_name = _name_only(trial.frame, [one.frame.index for one in tried], tried[0].group)
    board.insert(4, "above_name", board.held_out_r2 - by_name)
    return board.sort_values("above_name", ascending=False, kind="stable", ignore_index=True)


def _name_only(frame: DataFrame, rows: list[pandas.Index], group: str) -> list[float]:
    """R2 on groups left out of the baseline that knows the format's name, on each of some sets of rows."""
    trials = {one: fits.cross(frame.loc[[*one]], ("format",), TARGET, group, "lookup") for one in set(map(tuple, rows))}
    scores = {one: fits.scores(trial.frame[TARGET], trial.own())["r2"] for one, trial in trials.items()}
    return [scores[tuple(one)] for one in rows]


def _comparable(frame: DataFrame, chosen: list[Predictor], group: str) -> list[Predictor]:
    """The predictors whose features vary and are known of two groups at least; prints the features that do not."""
    if frame[group].nunique() < 2:
        return chosen  # `fits.cross` says what is missing
    names = dict.fromkeys(name for one in chosen for name in one.features if name in frame)
    rare = [name for name in names if frame[group][frame[name].notna()].nunique() < 2]
    if rare:
        print(f"known of fewer than two values of {group}, so no predictors: {', '.join(rare)}")
    numbers = [name for name in names if name not in rare and frame[name].dtype.kind in "biuf"]
    equal = [name for name in numbers if frame[name].nunique() < 2]
    if equal:
        print(f"the same in all rows, so no predictors: {', '.join(equal)}")
    return [one for one in chosen if not set(one.features) & {*rare, *equal}]


def _without_baselines(held_out: dict[Predictor, HeldOut]) -> dict[Predictor, HeldOut]:
    return {one: predicted for one, predicted in held_out.items() if _is_rival(one)}


def _is_rival(one: Predictor) -> bool:
    return one.family not in ("mean", "lookup")


def choose(trials: dict[Predictor, HeldOut]) -> HeldOut:
    """For each group the mean of the `BEST` trials, those with the least squared error on the other groups.

    The other groups are predicted without this group and without themselves, so neither the choice nor the interval
    has seen this group. Rows that some trial does not have are left out. The column ``chosen`` names the trials.
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
    """The predictors with the least squared error on these rows, predicted without their own and the named group.

    Where none of these errors is known, all predictors.
    """

    def error(one: Predictor) -> float:
        trial = trials[one]
        seen = left_out is not None and left_out in trial.cross.index
        predicted = trial.cross.loc[left_out] if seen else trial.own()
        return float(((trial.frame[trial.target] - predicted)[rows] ** 2).mean())

    errors = {one: found for one in trials if not math.isnan(found := error(one))}
    return tuple(sorted(errors, key=errors.get)[:BEST]) or tuple(trials)


def _in_sample(frame: DataFrame, chosen: Sequence[Predictor]) -> dict:
    """The columns of the board in sample; for a single predictor also R2 on kinds of format left out."""
    features = tuple(dict.fromkeys(name for one in chosen for name in one.features))
    y, kinds = frame[TARGET].to_numpy(float), numpy.nan
    curves = [fits.FAMILIES[one.family](fits.matrix(frame, one.features), y) for one in chosen]
    predicted = [curve.predict(fits.matrix(frame, one.features)) for curve, one in zip(curves, chosen, strict=True)]
    if len(chosen) == 1 and "kind" in frame and frame.kind.nunique() > 1:
        kinds = _scores(fits.cross(frame, features, TARGET, "kind", chosen[0].family).table())["r2"]
    score = fits.scores(y, numpy.mean(predicted, axis=0))
    in_sample = {"in_sample_r2": score["r2"], "in_sample_mae": score["mae"]}
    return {"features": ", ".join(features), **in_sample, "kind_out_r2": kinds}


def _left_out(trial: HeldOut, level: float) -> dict:
    """The columns of the board on groups left out."""
    level = conformal.promised(level, len(trial.cross) - 1)
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
        "interval_level": level,
        "coverage": fits.coverage(table),
        "width": (table.upper - table.lower).mean(),
    }


def _scores(table: DataFrame) -> dict[str, float]:
    return fits.scores(table[TARGET], table.predicted)


def _r2_interval(table: DataFrame, group: str) -> tuple[float, float]:
    """95% interval of the pooled R2 over groups drawn with replacement (cluster bootstrap, seed 0)."""
    y, left = table[TARGET], table.residual
    columns = DataFrame({"rows": 1.0, "y": y, "squares": y**2, "error": left**2})
    sums = columns.groupby(table[group].astype(str)).sum().to_numpy()
    drawn = numpy.random.default_rng(0).multinomial(len(sums), numpy.full(len(sums), 1 / len(sums)), RESAMPLES)
    rows, y, squares, error = (drawn @ sums).T
    with numpy.errstate(invalid="ignore", divide="ignore"):  # NaN where all losses are equal
        return tuple(numpy.quantile(1 - error / (squares - y**2 / rows), [0.025, 0.975]))
