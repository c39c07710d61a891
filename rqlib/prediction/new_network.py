"""What a network that was never quantized will lose, by the predictors that did best on networks left out."""

from typing import NamedTuple

from pandas import DataFrame, Series

from rqlib.core.vocabulary import did_you_mean
from rqlib.prediction import conformal, distance, exact_formats, fits, forecasting, ranking
from rqlib.prediction.features import TARGET
from rqlib.prediction.fits import HeldOut
from rqlib.prediction.forecasting import Predictor
from rqlib.prediction.published import NETWORK, PSEUDO
from rqlib.prediction.ranking import Trial


class Forecast(NamedTuple):
    """What is predicted of a network.

    Attributes:
        table: of `forecasting.predict`, one row per format.
        predictors: those whose mean it is.
        unlike: of `distance.unlike`, one row per feature in which the network lies outside what was measured.
        judged: the measured networks, each predicted in the same way as if it were new (`Trial.judged`): how far
            such a forecast can be trusted.
        level: what the intervals are made for, with few networks less than was asked for (`conformal.reachable`).
    """

    table: DataFrame
    predictors: tuple[Predictor, ...]
    unlike: DataFrame
    judged: HeldOut
    level: float


def forecast(
    trial: Trial, losses: DataFrame, new: DataFrame | str, *, group: str = "model", level: float = 0.9
) -> Forecast:
    """Predict the loss of a new network in every format.

    The predictors that did best in the trial, among those whose columns the network has, are fitted to the measured
    networks; their mean is the prediction. Where the network's loss on generated images is known, only predictors
    that read it are used (`Trial.best`).

    Args:
        trial: from `prediction.leave_out` of ``losses``.
        losses: the measured networks, from `prediction.table`.
        new: the same table of another network; or the title of one in ``losses`` that plays the new network. All
            rows of its group are left out of the choice of predictors and of their fit; so are those of a network
            that cannot be told from the other table's in any known column of `published.NETWORK`.
        group: a column whose values hold whole networks, such as the network's name, its family, its data set.
        level: share of comparable rows that the intervals shall hold.

    Raises:
        ValueError: no network has this title, or several have this name; the new network has no column that a
            predictor reads; the group divides networks.
    """
    _check_whole(losses, group)
    names = losses[group].astype(str)
    if isinstance(new, str):
        own = played(losses, new, group)
        left_out, new = [names[own].iloc[0]], losses[own]
    else:
        left_out = _measured_before(losses, new, group)
    known = losses[~names.isin(left_out)]
    columns = new.columns[new.notna().any()]
    if len(left_out) > 1:
        trial = ranking.leave_out(known, [*trial.held_out], group=group)
    best = trial.best(columns, without=left_out[0] if len(left_out) == 1 else None)
    if any(name.startswith(PSEUDO) for name in columns) and not any(ranking.reads_loss(one) for one in best):
        print("losses on generated images are known of this network, but not of the measured ones: not used")
    fit, judged = forecasting.fit(known, best, group=group), trial.judged(columns)
    fitted = known.dropna(subset=[*fit.features, TARGET])[group].nunique()
    level = conformal.reachable(level, min(fitted, len(judged.cross) - 1))
    table = exact_formats.narrowed(forecasting.predict(new, fit, level=level), known, group=group, level=level)
    return Forecast(table, best, distance.unlike(new, fit.seen), judged, level)


def _check_whole(losses: DataFrame, group: str) -> None:
    networks = "title" if "title" in losses else "model"
    parts = losses.groupby(networks, sort=False)[group].nunique()
    if parts.max() > 1:
        raise ValueError(
            f"expected a column whose values hold whole networks, such as network_name, got {group!r}, which divides "
            f"{parts.idxmax()} into {parts.max()} parts"
        )


def _measured_before(losses: DataFrame, new: DataFrame, group: str) -> list[str]:
    """The groups that hold rows of the new network, or of one that cannot be told from it; printed."""
    known = [name for name in NETWORK if name in losses and name in new and new[name].notna().all()]
    same = losses[known].eq(new[known].iloc[0]).all(axis=1) if known else Series(False, index=losses.index)
    found = [*losses[group].astype(str)[same].unique()]
    unknown = [name for name in NETWORK if name in losses and name not in known]
    if found and unknown:
        print(f"{'; '.join(found)}: perhaps this network ({', '.join(unknown)} not known); its rows are not used")
    elif found:
        print(f"{'; '.join(found)}: measured before; its rows are not used")
    return found


def played(losses: DataFrame, name: str, group: str = "model") -> Series:
    """Which rows belong to the network with this title, or to the only network of the group with this name.

    Raises:
        ValueError: there is none, or there are several; the message names them.
    """
    names = losses[group].astype(str)
    titles = losses.title if "title" in losses else names
    if (titles == name).any():
        return titles == name
    several = titles[names == name].unique()
    if len(several) > 1:
        raise ValueError(f"expected one network, {name!r} are {len(several)}: {'; '.join(several)}; name one of them")
    if not len(several):
        raise ValueError(did_you_mean(group, name, dict.fromkeys([*titles, *names])))
    return names == name


def judged_by_network(table: DataFrame) -> DataFrame:
    """How good forecasts of the measured networks are: one row per network of a `HeldOut.table` of `Forecast.judged`.

    Columns: rows; mae, the mean absolute error; coverage, the share of rows whose interval holds the measured loss;
    width, the mean width of the intervals; distance, the largest of the rows', and the features ``outside``.
    """
    networks = table.groupby("title", sort=False)
    columns = {
        "rows": networks.size(),
        "mae": networks.residual.apply(lambda left: left.abs().mean()),
        "coverage": networks.apply(fits.coverage),
        "width": networks.apply(lambda rows: (rows.upper - rows.lower).mean()),
        "distance": networks.distance.max(),
        "outside": networks.outside.apply(_together),
    }
    return DataFrame(columns).dropna(axis="columns", how="all")


def _together(names: Series) -> str:
    """Each name once, of texts with several names."""
    return ", ".join(dict.fromkeys(name for text in names if text for name in text.split(", ")))


def familiarity(forecast: Forecast) -> str:
    """One sentence: whether the network lies within what was measured, and if not, in what and how far outside."""
    table, unlike = forecast.table, forecast.unlike
    outside = int((table.distance > 0).sum())
    if not outside:
        return f"all {len(table)} formats lie within what was measured"
    parts = [
        f"{row.feature} {_number(row.value)} (measured: {_number(row.measured_from)} to {_number(row.measured_to)})"
        for row in unlike.itertuples()
    ]
    furthest = table.distance.max()
    return (
        f"unlike the measured networks: {outside} of {len(table)} formats lie outside what was measured, in "
        f"{'; '.join(parts)}. There the interval is the largest error of similar predictions of networks left out, "
        f"times up to {1 + furthest:.2f}, because the network lies up to {furthest:.2f} ranges outside"
    )


def _number(value: float) -> str:
    """Whole numbers in full, others with three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
