"""Intervals around predictions, as wide as the errors on networks left out: conformal prediction."""

import numpy
from numpy import ndarray

NEIGHBORS, FEWEST = 0.25, 30
"""Share of the calibration rows that the interval of one prediction is read from, and the least number."""


def interval(values: ndarray, predicted: ndarray, residual: ndarray, *, level: float = 0.9) -> tuple[ndarray, ndarray]:
    """Lower and upper ends (N,) around ``values`` that held ``level`` of comparable rows left out.

    value -+ the ceil((n + 1) level)-th smallest |residual| of the n calibration rows with the nearest
    predictions (infinite where n is too small for the level; NaN without calibration rows that have a prediction).
    Calibration rows are predicted by curves fitted without their own group (cross-conformal, Vovk 2015,
    arXiv 1208.0806). Rows of one network err together, so with few networks this is no guarantee
    (that takes at least level / (1 - level) of them: Dunn et al., arXiv 1809.07441): measure the coverage.

    Args:
        values: (N,) predictions that want an interval.
        predicted, residual: (M,) calibration rows: prediction, and truth - prediction.
    """
    known = numpy.isfinite(predicted)
    predicted, residual = predicted[known], residual[known]
    if not len(predicted):
        return numpy.full(len(values), numpy.nan), numpy.full(len(values), numpy.nan)
    count = min(len(predicted), max(FEWEST, round(NEIGHBORS * len(predicted))))
    distance = numpy.abs(values[:, None] - predicted)
    reach = numpy.partition(distance, count - 1, axis=1)[:, count - 1 : count]
    width = [_rank(numpy.abs(residual[near]), level) for near in distance <= reach]
    return values - width, values + width


def _rank(errors: ndarray, level: float) -> float:
    """The ceil((n + 1) level)-th smallest of n errors."""
    rank = int(numpy.ceil((len(errors) + 1) * level))
    return float(numpy.partition(errors, rank - 1)[rank - 1]) if rank <= len(errors) else numpy.inf


def coverage(truth: ndarray, lower: ndarray, upper: ndarray) -> float:
    """Share of rows whose interval holds the truth; NaN where there are no intervals."""
    known = numpy.isfinite(truth) & ~numpy.isnan(lower)
    inside = (truth >= lower) & (truth <= upper)
    return float(numpy.mean(inside[known])) if known.any() else numpy.nan
