"""The range of values that a format has to cover, and the scale that follows from it.

A range has one row per scale: one for a whole tensor, or one per output channel. It serves all formats.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rqlib.quantization.formats import Format

METHODS = ("minmax", "percentile", "mse")
PERCENTILE = 0.9999
BINS = 2048
FLOOR = 1e-12  # so that a tensor of zeros has a scale, too
CANDIDATES = torch.linspace(0.01, 1, 100)  # limits that ``mse`` tries, in units of the largest magnitude


@dataclass(frozen=True)
class Range:
    """What is known of the values of a tensor, row by row.

    Attributes:
        minimum, maximum: the smallest and the largest value, (rows,).
        counts: a histogram as of `histogram_of`, or None.
    """

    minimum: Tensor
    maximum: Tensor
    counts: Tensor | None = None

    @property
    def magnitude(self) -> Tensor:
        """The largest magnitude, (rows,)."""
        return torch.maximum(-self.minimum, self.maximum)


def observe(rows: Tensor, *, histogram: bool = True) -> Range:
    """The range of a tensor (rows, values), with or without its histogram."""
    minimum, maximum = (limit.float() for limit in rows.detach().aminmax(dim=1))
    observed = Range(minimum, maximum)
    return replace(observed, counts=histogram_of(rows.detach(), observed.magnitude)) if histogram else observed


@torch.no_grad()
def histogram_of(rows: Tensor, magnitude: Tensor) -> Tensor:
    """Counts (rows, 2, BINS), float64: negative values, then the others, by magnitude.

    The bins are equal parts of [0, magnitude]; what is larger counts in the last.
    """
    bins = (rows.abs() * (BINS / magnitude.clamp(min=FLOOR))[:, None]).long().clamp_(max=BINS - 1)
    bins += BINS * (rows >= 0)
    return count_in_rows(bins, 2 * BINS).double().view(-1, 2, BINS)


def count_in_rows(bins: Tensor, number: int) -> Tensor:
    """How often each bin occurs in each row: (rows, values) of whole numbers below ``number`` -> (rows, number).

    The bins are overwritten.
    """
    bins += torch.arange(len(bins), device=bins.device)[:, None] * number
    return torch.bincount(bins.flatten(), minlength=len(bins) * number).view(len(bins), number)


def check_method(method: str) -> None:
    """Raise a ValueError for a method that `scale` does not know."""
    if method not in METHODS:
        raise ValueError(f"expected ranges {' | '.join(METHODS)}, got {method!r}")


def scale(observed: Range, format: Format, method: str) -> Tensor:
    """The scale ``s = limit / Q``, (rows,) float32, with Q the largest value of the format.

    Magnitudes above the limit are clipped. The method says what the limit is:
    minmax: the largest magnitude, so that nothing is clipped.
    percentile: the smallest limit that clips at most one magnitude in ten thousand.
    mse: of 100 limits up to the largest magnitude, the one with the least mean-square error of rounding and clipping.
    """
    check_method(method)
    if method == "minmax":
        limit = observed.magnitude
    else:
        limit = _percentile(observed) if method == "percentile" else _least_error(observed, format)
    return (limit.clamp(min=FLOOR).double() / format.max).float()


def _percentile(observed: Range) -> Tensor:
    return observed.magnitude * covering(observed.counts.sum(1), PERCENTILE)


def covering(counts: Tensor, share: float) -> Tensor:
    """The part of the largest magnitude, (rows,), up to which lies this share of a histogram (rows, BINS)."""
    covered = counts.cumsum(1) / counts.sum(1, keepdim=True)
    edges = (covered < share).sum(1) + 1  # the first edge that covers enough
    return edges.clamp(max=BINS) / BINS


def _least_error(observed: Range, format: Format) -> Tensor:
    """The limit of least error; in units of the maximum one table of errors (candidates, BINS) serves all rows."""
    candidates = CANDIDATES.to(observed.counts.device)
    middles = centers(candidates)
    steps = candidates[:, None] / format.max
    errors = (format.round(middles / steps) * steps - middles).square()
    return observed.magnitude * candidates[(observed.counts.sum(1) @ errors.double().T).argmin(1)]


def centers(like: Tensor) -> Tensor:
    """The middle of each bin in units of the largest magnitude."""
    return (torch.arange(BINS, device=like.device) + 0.5) / BINS
