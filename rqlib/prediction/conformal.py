"""Conformal prediction: intervals around predictions, as wide as the errors on networks left out."""

import numpy
from numpy import ndarray

NEIGHBORS, FEWEST = 0.25, 30
"""The interval of a prediction is read from this share of the calibration rows, and from no fewer than this number."""


def interval(values: ndarray, predicted: ndarray, residual: ndarray, *, level: float = 0.9) -> tuple[ndarray, ndarray]:
    """Lower and upper ends (N,) of intervals that would have held the share ``level`` of comparable rows left out.

    Predictions are given as ``values`` (N,), those of the M calibration rows as ``predicted`` (M,), and their errors,
    truth - prediction, as ``residual`` (M,).

    The interval of a value reaches as far as the ceil((n + 1) level)-th smallest |residual| of the n calibration rows
    whose predictions are nearest to the value. It is infinite where n is too small for the level, and NaN where no
    calibration row has a prediction. Calibration rows are to be predicted by curves fitted without their own group
    (cross-conformal: Vovk 2015, arXiv 1208.0806).

    Rows of one network err together. A guarantee would take at least level / (1 - level) networks (Dunn et al.,
    arXiv 1809.07441); with fewer, measure their coverage (`fits.coverage`).
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
