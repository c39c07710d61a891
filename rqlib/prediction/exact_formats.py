"""Formats that hold a network so exactly that hardly an answer can change, however far its predictors may be wrong."""

import numpy
from pandas import DataFrame

from rqlib.prediction import conformal
from rqlib.prediction.features import TARGET

SMALL = 1e-3
"""A format is exact enough if the logits of no measured network moved by more: ``||z_q - z||^2 / ||z||^2``."""


def narrowed(table: DataFrame, known: DataFrame, *, group: str = "model", level: float = 0.9) -> DataFrame:
    """A forecast whose intervals are narrower in formats that are exact enough.

    The largest error of the logits that a measured network had in a format, times (1 + distance)^2, bounds that of
    the new one. Where this bound is at most `SMALL`, the loss is predicted to be 0, and its interval reaches as far
    as the largest |loss| of all measured rows whose logits moved by no more than the bound. An interval that is
    narrower already stays; one that is not known becomes this one. Only formats count that so many networks were
    measured in that the largest of their errors can promise the level (`conformal.promised`).

    Args:
        table: rows of one network: format, distance, predicted, lower, upper, as of `forecasting.predict`.
        known: the measured networks; without the column logit_error the table stays as it is.
        group: the column that says which network a measured row belongs to.
        level: what the intervals promise.
    """
    if not {"logit_error", "format", TARGET} <= set(known):
        return table
    known = known.dropna(subset=["logit_error", TARGET])
    formats = known.groupby("format")
    enough = formats[group].nunique().map(lambda networks: conformal.promised(level, networks) == level)
    bound = table.format.map(formats.logit_error.max()[enough]) * (1 + table.distance) ** 2
    errors, losses = known.logit_error.to_numpy(), known[TARGET].abs().to_numpy()
    reach = numpy.array([losses[errors <= one].max() if one <= SMALL else numpy.inf for one in bound])
    better = (reach < table.upper) | (numpy.isfinite(reach) & table.upper.isna())
    return table.assign(
        predicted=table.predicted.mask(better, 0.0),
        lower=table.lower.mask(better, -reach),
        upper=table.upper.mask(better, reach),
    )
