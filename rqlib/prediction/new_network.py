"""What a network that was never quantized will lose, by the predictors that did best on networks left out."""

from typing import NamedTuple

from pandas import DataFrame

from rqlib.core.vocabulary import did_you_mean
from rqlib.prediction import forecasting
from rqlib.prediction.forecasting import Predictor
from rqlib.prediction.ranking import Trial


class Forecast(NamedTuple):
    """The table of `forecasting.predict`, one row per format, and the predictors whose mean it is."""

    table: DataFrame
    predictors: tuple[Predictor, ...]


def forecast(
    trial: Trial, losses: DataFrame, new: DataFrame | str, *, group: str = "model", level: float = 0.9
) -> Forecast:
    """Predict the loss of a new network in every format.

    The predictors that did best in the trial, among those whose columns the network has, are fitted to the measured
    networks; their mean is the prediction.

    Args:
        trial: from `prediction.leaderboard` of ``losses``.
        losses: the measured networks, from `prediction.table`.
        new: the same table of another network; or the name of one in ``losses`` that plays the new network. It is
            then left out of the choice of predictors and of their fit.
        level: share of comparable rows that the intervals shall hold.

    Raises:
        ValueError: no network has this name; the new network has no column that a predictor reads.
    """
    known, left_out = losses, None
    if isinstance(new, str):
        names, left_out = losses[group].astype(str), new
        if left_out not in set(names):
            raise ValueError(did_you_mean(group, left_out, names.unique()))
        known, new = losses[names != left_out], losses[names == left_out]
    best = trial.best(new.columns[new.notna().any()], without=left_out)
    fit = forecasting.fit(known, best, group=group)
    return Forecast(forecasting.predict(new, fit, level=level), best)
