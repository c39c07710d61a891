"""Conformal prediction: intervals around predictions, as wide as the errors on networks left out."""

import numpy
from numpy import ndarray

NEIGHBORS, FEWEST = 0.25, 30
"""The interval of a prediction is read from this share of the calibration rows, and from no fewer than this number."""


def interval(
    values: ndarray,
    predicted: ndarray,
    residual: ndarray,
    *,
    level: float = 0.9,
    distance: ndarray | None = None,
    groups: ndarray | None = None,
) -> tuple[ndarray, ndarray]:
    """Lower and upper ends (N,) of intervals that would have held the share ``level`` of comparable rows left out.

    Predictions are given as ``values`` (N,), those of the M calibration rows as ``predicted`` (M,), and their errors,
    truth - prediction, as ``residual`` (M,).

    The interval of a value reaches as far as the ceil((n + 1) level)-th smallest |residual| of the n calibration rows
    whose predictions are nearest to the value. It is infinite where n is too small for the level, and NaN where no
    calibration row has a prediction. Calibration rows are to be predicted by curves fitted without their own group
    (cross-conformal: Vovk 2015, arXiv 1208.0806).

    Values of a network that is unlike those of the calibration rows are not comparable with them. Where its
    ``distance`` (N,) is above 0 (`distance.measured`), the interval reaches as far as the largest |residual| of the
    n (1 + distance) nearest rows, times 1 + distance, and never less far than without a distance.

    Rows of one network err together. A guarantee would take at least level / (1 - level) networks (Dunn et al.,
    arXiv 1809.07441): `reachable`. Within this limit, measure the coverage (`fits.coverage`). Where the ``groups`` (M,)
    say which calibration rows are of one network, the rank is not taken from the level but from what would have held
    the level on the networks themselves (`calibrated`); it is then never infinite, and reaches at most to the largest
    of the errors, which may promise less than the level.
    """
    known = numpy.isfinite(predicted)
    predicted, residual = predicted[known], residual[known]
    if not len(predicted):
        return numpy.full(len(values), numpy.nan), numpy.full(len(values), numpy.nan)
    if groups is not None:
        level = calibrated(predicted, residual, groups[known], level)
    apart = _apart(values, predicted)
    nearest, count = _nearest(apart)
    errors = [numpy.abs(residual[near]) for near in nearest]
    width = numpy.array([_rank(some, level) for some in errors])
    if distance is not None:
        widest = (1 + distance) * _widest(apart, numpy.abs(residual), count * (1 + distance))
        width = numpy.where(distance > 0, numpy.maximum(width, widest), width)
    return values - width, values + width


def calibrated(predicted: ndarray, residual: ndarray, groups: ndarray, level: float) -> float:
    """The level of ranks at which each network's rows would have been held by intervals made of the other networks.

    Networks differ, so the errors of the others hold fewer rows of a new one than their ranks promise. For each row,
    its rank among the errors of the nearest rows of other networks is the lowest level that would have held it. The
    result is the quantile of these levels, at ``level``, in which every network counts alike. It is at most what the
    largest error can promise, n / (n + 1) of n neighbors, and the level itself if there is only one network.

    It is the level that the known networks needed on average. A new network whose rows all err alike is held less
    often: with G networks, with a probability of about level G / (G + 1).

    Args:
        predicted, residual, groups: (M,), of the calibration rows.
    """
    names, members, counts = numpy.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return level
    needed = numpy.empty(len(predicted))
    for number in range(len(names)):
        own = members == number
        near = _nearest(_apart(predicted[own], predicted[~own]))[0]
        smaller = near & (numpy.abs(residual[~own]) < numpy.abs(residual[own])[:, None])
        needed[own] = (smaller.sum(axis=1) + 1) / (near.sum(axis=1) + 1)
    neighbors = _neighbors(len(predicted))
    found = numpy.quantile(needed, level, weights=1 / counts[members], method="inverted_cdf")
    return min(neighbors / (neighbors + 1), float(found))


def _apart(values: ndarray, predicted: ndarray) -> ndarray:
    """How far each value (N,) is from each prediction (M,): (N, M)."""
    return numpy.abs(values[:, None] - predicted)


def _neighbors(rows: int) -> int:
    """How many of so many calibration rows an interval is read from."""
    return min(rows, max(FEWEST, round(NEIGHBORS * rows)))


def _nearest(apart: ndarray) -> tuple[ndarray, int]:
    """Of distances (N, M): which columns are among the nearest of each line, (N, M), and how many they shall be."""
    count = _neighbors(apart.shape[1])
    return apart <= numpy.partition(apart, count - 1, axis=1)[:, count - 1 : count], count


def reachable(level: float, networks: int) -> float:
    """The level that intervals can promise when this number of networks has shown its errors; printed if it is lower.

    Networks are counted without the one that is predicted. A new network errs more than all of n others with a
    probability of 1 / (n + 1), so no interval made of their errors can promise more than n / (n + 1): three networks
    at most 75%.
    """
    most = promised(level, networks)
    if level > most:
        print(f"{networks} networks: intervals can promise at most {most:.0%} and are made for that, not {level:.0%}")
    return most


def promised(level: float, networks: int) -> float:
    """The same as `reachable`, without a word."""
    return min(level, networks / (networks + 1))


def _widest(apart: ndarray, errors: ndarray, counts: ndarray) -> ndarray:
    """For each line of distances (N, M) the largest of the errors (M,) of so many nearest columns."""
    order = numpy.argsort(apart, axis=1, kind="stable")
    upto = numpy.maximum.accumulate(errors[order], axis=1)
    return upto[numpy.arange(len(apart)), numpy.minimum(numpy.ceil(counts).astype(int), len(errors)) - 1]


def _rank(errors: ndarray, level: float) -> float:
    """The ceil((n + 1) level)-th smallest of n errors."""
    rank = int(numpy.ceil((len(errors) + 1) * level))
    return float(numpy.partition(errors, rank - 1)[rank - 1]) if rank <= len(errors) else numpy.inf
