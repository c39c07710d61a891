"""Tensors with few distinct values: the levels that fit a tensor best, beside a level that is pinned to 0.

The nearest tensor with at most K distinct values that are not 0 is ``nearest(x, codebook(x, K))``. Zeros stay 0; a
small value becomes 0, too, if no level is nearer.
"""

import numpy
import torch
from numpy import ndarray
from torch import Tensor

EXACT = 5000
"""Up to so many nonzero values the best levels are found for certain; beyond, by Lloyd's algorithm."""

_ITERATIONS = 100


def codebook(values: Tensor, levels: int) -> Tensor:
    """The levels c that minimize ``sum_i min_k (x_i - c_k)^2``: 0, and at most ``levels`` others.

    No random number is drawn, and no level is wasted: each is the mean of the values that are nearest to it, and if the
    distinct values are no more than the levels, they are the levels. Up to `EXACT` nonzero values the minimum is found
    by dynamic programming over the sorted values. Beyond, Lloyd's algorithm starts from their quantiles and ends in a
    local minimum.

    Args:
        values: any shape, also empty. Their zeros cost nothing, because 0 is a level.
        levels: at least 1.

    Returns:
        The levels in ascending order, float32, 0 among them.

    Raises:
        ValueError: fewer than one level; values that are not finite.

    Source: S. P. Lloyd, Least squares quantization in PCM, 1982; H. Wang and M. Song, Ckmeans.1d.dp, 2011.
    """
    if levels < 1:
        raise ValueError(f"codebook: expected at least 1 level beside 0, got {levels}")
    x = values.detach().double().flatten()
    if not x.isfinite().all():
        raise ValueError("codebook: expected finite values, got NaN or infinity")
    x = x[x != 0].sort().values
    centers, counts = x.unique(return_counts=True)
    if len(centers) > levels:
        exact = len(x) <= EXACT
        centers = _best(centers, counts, levels) if exact else _lloyd(x, levels)
    return torch.cat([centers, centers.new_zeros(1)]).float().unique()


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Each value replaced by the nearest of the ascending levels; in a tie by the lower one."""
    return levels[torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)].to(values.dtype)


def _best(values: Tensor, counts: Tensor, levels: int) -> Tensor:
    """The best levels for distinct values, of which each occurs so many times; there are more values than levels.

    Because 0 is a level, no other level serves values of both signs: the levels are divided between the signs.
    """
    x, weights = values.cpu().numpy(), counts.cpu().numpy().astype(float)
    sides = [(-1, x < 0, slice(None, None, -1)), (1, x > 0, slice(None))]
    tables = [_table(sign * x[side][order], weights[side][order], levels) for sign, side, order in sides]
    (below, _, _), (above, _, _) = tables
    shares = [(k, min(levels - k, len(above) - 1)) for k in range(len(below))]
    share = min(shares, key=lambda pair: below[pair[0]] + above[pair[1]])
    centers = [sign * _centers(*table, k) for (sign, *_), table, k in zip(sides, tables, share, strict=True)]
    return torch.from_numpy(numpy.concatenate(centers)).to(values.device)


def _table(x: ndarray, weights: ndarray, levels: int) -> tuple[ndarray, ndarray, ndarray]:
    """The dynamic program for positive distinct values in ascending order.

    Returns:
        The least cost of all n values with 0, 1, ... levels; for each number of levels and each number j of values
        where the last group of the first j begins, (levels + 1, n + 1); sums of the first j weights and values.
    """
    sums = numpy.zeros((3, len(x) + 1))
    sums[:, 1:] = numpy.cumsum([weights, weights * x, weights * x * x], axis=1)
    costs, total = sums[2], [sums[2][-1]]  # without levels all values become 0
    begins = numpy.zeros((min(levels, len(x)) + 1, len(x) + 1), numpy.int64)
    for level in range(1, len(begins)):
        costs = _with_another_level(costs, sums, begins[level - 1], begins[level])
        total.append(costs[-1])
    return numpy.array(total), begins, sums[:2]


def _with_another_level(costs: ndarray, sums: ndarray, before: ndarray, begins: ndarray) -> ndarray:
    """Costs of the first j values with one level more, for all j; fills in where the last group begins.

    This beginning decreases neither with j nor with the number of levels (the costs satisfy the quadrangle inequality).
    So it is found first for the j in the middle, then for those between, and so on: each between those of its neighbors
    and not before that with one level less.
    """
    last, better = len(costs) - 1, numpy.zeros_like(costs)
    stride = 1 << last.bit_length()
    while stride:
        ends = numpy.arange(stride, last + 1, 2 * stride)
        after = numpy.minimum(ends + stride, last + 1)
        high = numpy.where(after > last, ends, numpy.minimum(begins[numpy.minimum(after, last)], ends))
        low = numpy.minimum(numpy.maximum(begins[ends - stride], before[ends]), high)
        lengths = high - low + 1
        firsts = numpy.cumsum(lengths) - lengths
        rows = numpy.repeat(numpy.arange(len(ends)), lengths)
        starts = numpy.arange(lengths.sum()) - (firsts - low)[rows]
        found = costs[starts] + _spread(starts, ends[rows], sums)
        if len(ends):
            better[ends] = numpy.minimum.reduceat(found, firsts)
            hits = numpy.flatnonzero(found == better[ends][rows])[::-1]  # backwards: the first of equals is kept
            begins[ends[rows[hits]]] = starts[hits]
        stride //= 2
    return better


def _spread(starts: ndarray, ends: ndarray, sums: ndarray) -> ndarray:
    """``sum w (x - mean)^2`` over the values from ``starts`` to before ``ends``."""
    weight, first, second = sums[:, ends] - sums[:, starts]
    return second - first**2 / numpy.maximum(weight, 1)


def _centers(costs: ndarray, begins: ndarray, sums: ndarray, levels: int) -> ndarray:
    """The means of the groups in the best division of all values among so many levels."""
    end, centers = begins.shape[1] - 1, []
    for level in range(levels, 0, -1):
        begin = begins[level, end]
        if begin < end:
            weight, first = sums[:, end] - sums[:, begin]
            centers.append(first / weight)
        end = begin
    return numpy.array(centers)


def _lloyd(x: Tensor, levels: int) -> Tensor:
    """Lloyd's algorithm for sorted values, from their quantiles."""
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    quantiles = (torch.arange(levels, dtype=torch.float64, device=x.device) + 0.5) / levels
    centers = x[(quantiles * len(x)).long()]
    for _ in range(_ITERATIONS):
        previous, centers = centers, _lloyd_step(x, sums, centers)
        if torch.equal(previous, centers):
            break
    return centers


def _lloyd_step(x: Tensor, sums: Tensor, centers: Tensor) -> Tensor:
    """Move each center to the mean of the values nearest to it. 0 is a center, too, and stays.

    A center that is the nearest one of no value moves to the value that is farthest from its own center.
    """
    levels, _ = torch.cat([centers, centers.new_zeros(1)]).sort()
    edges = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
    edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(x))])
    counts = edges.diff()
    means = (sums[edges[1:]] - sums[edges[:-1]]) / counts.clamp(min=1)
    zero = int((levels == 0).nonzero()[0])
    empty = (counts == 0).nonzero().flatten().tolist()
    distances = (x - levels.repeat_interleave(counts)).abs() if empty else x
    for index, worst in zip(empty, distances.argsort(descending=True).tolist(), strict=False):
        means[index] = x[worst]
    return torch.cat([means[:zero], means[zero + 1 :]])
