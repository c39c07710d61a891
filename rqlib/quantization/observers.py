"""What range of values a format has to cover: of a weight, and of a signal that streams by.

A `Range` keeps the largest magnitude and a histogram of magnitudes, one row a scale (one row for a whole
tensor, or one an output channel); no format enters it, so one observation serves them all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rqlib.quantization.formats import Format

METHODS = ("minmax", "percentile", "mse")
PERCENTILE = 0.9999
BINS = 2048
FLOOR = 1e-12  # an all-zero tensor still has a scale
_CANDIDATES = torch.linspace(0.01, 1, 100)


@dataclass(frozen=True)
class Range:
    """Magnitudes of a tensor, row by row.

    ``maximum``: (rows,) largest magnitude. ``counts``: (rows, BINS) how many magnitudes lie in each equal
    part of [0, maximum], None where only the maximum was asked for.
    """

    maximum: Tensor
    counts: Tensor | None = None


def observe(rows: Tensor, *, histogram: bool = True) -> Range:
    """The range of a tensor (rows, values)."""
    maximum = rows.detach().abs().amax(1).float()
    return Range(maximum, histogram_of(rows, maximum) if histogram else None)


@torch.no_grad()
def histogram_of(rows: Tensor, maximum: Tensor) -> Tensor:
    """Counts (rows, BINS) of magnitudes in equal parts of [0, maximum], float64; what is above counts in the last."""
    bins = (rows.abs() * (BINS / maximum.clamp(min=FLOOR))[:, None]).long().clamp_(max=BINS - 1)
    bins += torch.arange(len(rows), device=rows.device)[:, None] * BINS
    return torch.bincount(bins.flatten(), minlength=len(rows) * BINS).view(len(rows), BINS).double()


def scale(observed: Range, format: Format, method: str = "minmax") -> Tensor:
    """s = limit / Q, (rows,) float32: the magnitude ``limit`` becomes the format's largest value.

    minmax: the largest magnitude; nothing is clipped. percentile: 99.99% of the magnitudes are not clipped.
    mse: of 100 limits up to the maximum the one of least mean-square rounding and clipping error.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"expected ranges {' | '.join(METHODS)}, got {method!r}")
    limit = {"minmax": _maximum, "percentile": _percentile, "mse": _least_error}[method](observed, format)
    return (limit.clamp(min=FLOOR).double() / format.max).float()


def _maximum(observed: Range, format: Format) -> Tensor:
    return observed.maximum


def _percentile(observed: Range, format: Format) -> Tensor:
    covered = observed.counts.cumsum(1) / observed.counts.sum(1, keepdim=True)
    edges = (covered < PERCENTILE).sum(1) + 1  # the first edge that covers enough
    return observed.maximum * edges.clamp(max=BINS) / BINS


def _least_error(observed: Range, format: Format) -> Tensor:
    """The errors of all candidates are the same in units of the maximum: one table (candidates, BINS) for all rows."""
    candidates = _CANDIDATES.to(observed.counts.device)
    centers = (torch.arange(BINS, device=candidates.device) + 0.5) / BINS
    steps = candidates[:, None] / format.max
    errors = (format.round(centers / steps) * steps - centers).square()
    return observed.maximum * candidates[(observed.counts @ errors.double().T).argmin(1)]
