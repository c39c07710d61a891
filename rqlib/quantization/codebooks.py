"""Codebooks: a set of levels that is fitted to the values of a tensor instead of being a number format."""

import torch
from torch import Tensor


def codebook(values: Tensor, bits: int, *, iterations: int = 100) -> Tensor:
    """Levels that are fitted to values by Lloyd's k-means, with one center fixed at 0.

    The centers start at quantiles of the values and no random number is drawn, so the same values always give the same
    levels. A center that is the nearest one of no value moves to the value that is farthest from its own center.

    Args:
        values: any shape; a ValueError refuses values that are not finite, or no values.
        bits: 1 to 16. There are 2^bits levels in ascending order, float32, 0 among them; fewer if the values are fewer.

    Source: S. P. Lloyd, Least squares quantization in PCM, 1982.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"codebook: bits must be 1..16, got {bits}")
    x = values.detach().double().flatten().sort().values
    if not x.isfinite().all() or not len(x):
        raise ValueError("codebook: expected finite values, got NaN, infinity or none at all")
    distinct = x[x != 0].unique()
    if len(distinct) < 2**bits:
        return torch.cat([distinct, distinct.new_zeros(1)]).sort().values.float()
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    quantiles = (torch.arange(2**bits - 1, dtype=torch.float64) + 0.5) / (2**bits - 1)
    centers = x[(quantiles * len(x)).long()]
    for _ in range(iterations):
        previous, centers = centers, _lloyd_step(x, sums, centers)
        if torch.equal(previous, centers):
            break
    return torch.cat([centers, centers.new_zeros(1)]).sort().values.float()


def _lloyd_step(x: Tensor, sums: Tensor, centers: Tensor) -> Tensor:
    """Move each center to the mean of the values nearest to it. 0 is a center, too, and stays."""
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
