"""The range of values that a format has to cover, and the scale that follows from it.

A range has one row per scale: one for a whole tensor, or one per output channel. It serves all formats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rqlib.quantization.formats import Format

METHODS = ("minmax", "percentile", "mse")
NONNEGATIVE = ("unsigned", "signed")
PERCENTILE = 0.9999
BINS = 2048
FLOOR = 1e-12  # so that a tensor of zeros has a scale, too
_CANDIDATES = torch.linspace(0.01, 1, 100)  # limits that ``mse`` tries, in units of the largest magnitude


@dataclass(frozen=True)
class Range:
    """What is known of the values of a tensor, row by row.

    Attributes:
        maximum: the largest magnitude, (rows,).
        minimum: the smallest value, (rows,).
        counts: a histogram of the magnitudes as of `histogram_of`, or None.
    """

    maximum: Tensor
    minimum: Tensor
    counts: Tensor | None = None


def observe(rows: Tensor, *, histogram: bool = True) -> Range:
    """The range of a tensor (rows, values), with or without its histogram."""
    rows = rows.detach()
    maximum = rows.abs().amax(1).float()
    return Range(maximum, rows.amin(1).float(), histogram_of(rows, maximum) if histogram else None)


@torch.no_grad()
def histogram_of(rows: Tensor, maximum: Tensor) -> Tensor:
    """Counts (rows, BINS), float64, of magnitudes in equal parts of [0, maximum]; larger ones count in the last."""
    bins = (rows.abs() * (BINS / maximum.clamp(min=FLOOR))[:, None]).long().clamp_(max=BINS - 1)
    return count_in_rows(bins, BINS).double()


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


def check_nonnegative(word: str) -> None:
    """Raise a ValueError for a word that `fitting` does not know."""
    if word not in NONNEGATIVE:
        raise ValueError(f"expected nonnegative {' | '.join(NONNEGATIVE)}, got {word!r}")


def fitting(observed: Range, format: Format, nonnegative: str = "unsigned") -> Format:
    """The format that a tensor takes: its unsigned form if no value is negative and ``nonnegative`` is ``unsigned``."""
    check_nonnegative(nonnegative)
    return format.unsigned if nonnegative == "unsigned" and bool((observed.minimum >= 0).all()) else format


def scale(observed: Range, format: Format, method: str) -> Tensor:
    """The scale ``s = limit / Q``, (rows,) float32, with Q the largest value of the format.

    Magnitudes above the limit are clipped. The method says what the limit is:
    minmax: the largest magnitude, so that nothing is clipped.
    percentile: the smallest limit that clips at most one magnitude in ten thousand.
    mse: of 100 limits up to the largest magnitude, the one with the least mean-square error of rounding and clipping.
    """
    check_method(method)
    if method == "minmax":
        limit = observed.maximum
    else:
        limit = _percentile(observed) if method == "percentile" else _least_error(observed, format)
    return (limit.clamp(min=FLOOR).double() / format.max).float()


def _percentile(observed: Range) -> Tensor:
    covered = observed.counts.cumsum(1) / observed.counts.sum(1, keepdim=True)
    edges = (covered < PERCENTILE).sum(1) + 1  # the first edge that covers enough
    return observed.maximum * edges.clamp(max=BINS) / BINS


def _least_error(observed: Range, format: Format) -> Tensor:
    """The limit of least error; in units of the maximum one table of errors (candidates, BINS) serves all rows."""
    candidates = _CANDIDATES.to(observed.counts.device)
    centers = (torch.arange(BINS, device=candidates.device) + 0.5) / BINS
    steps = candidates[:, None] / format.max
    errors = (format.round(centers / steps) * steps - centers).square()
    return observed.maximum * candidates[(observed.counts @ errors.double().T).argmin(1)]
