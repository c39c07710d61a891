"""The range of values that a format has to cover, and the scale that follows from it.

A range has one row per scale: one for a whole tensor, or one per output channel. It serves all formats.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rqlib.quantization.formats import Format

METHODS = ("minmax", "percentile", "mse")
NONNEGATIVE = ("unsigned", "zero_point", "signed")
PERCENTILE = 0.9999
BINS = 2048
FLOOR = 1e-12  # so that a tensor of zeros has a scale, too
_CANDIDATES = torch.linspace(0.01, 1, 100)  # limits that ``mse`` tries, in units of the largest magnitude


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


def check_nonnegative(word: str) -> None:
    """Raise a ValueError for a word that `fitting` does not know."""
    if word not in NONNEGATIVE:
        raise ValueError(f"expected nonnegative {' | '.join(NONNEGATIVE)}, got {word!r}")


def fitting(observed: Range, format: Format, method: str, nonnegative: str = "unsigned") -> tuple[Format, Tensor]:
    """The form of a format that a signal takes, and its scale.

    Args:
        observed: the range of the signal; one row.
        method: as in `scale`.
        nonnegative: ``signed``: the format itself. ``unsigned``: its unsigned form if no value is negative.
            ``zero_point``: the same, and where values are negative, an evenly spaced format gets the zero point that
            suits them (`Format.with_zero_point`).
    """
    check_nonnegative(nonnegative)
    negative = bool((observed.minimum < 0).any())
    if negative and nonnegative == "zero_point" and format.exponent_bits == 1 and not format.legacy:
        return _with_zero_point(observed, format, method)
    form = format if negative or nonnegative == "signed" else format.unsigned
    return form, scale(observed, form, method)


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
    return observed.magnitude * _covering(observed.counts.sum(1), PERCENTILE)


def _covering(counts: Tensor, share: float) -> Tensor:
    """The part of the largest magnitude, (rows,), up to which a histogram (rows, BINS) holds this share of it."""
    covered = counts.cumsum(1) / counts.sum(1, keepdim=True)
    edges = (covered < share).sum(1) + 1  # the first edge that covers enough
    return edges.clamp(max=BINS) / BINS


def _least_error(observed: Range, format: Format) -> Tensor:
    """The limit of least error; in units of the maximum one table of errors (candidates, BINS) serves all rows."""
    candidates = _CANDIDATES.to(observed.counts.device)
    centers = _centers(candidates)
    steps = candidates[:, None] / format.max
    errors = (format.round(centers / steps) * steps - centers).square()
    return observed.magnitude * candidates[(observed.counts.sum(1) @ errors.double().T).argmin(1)]


def _centers(like: Tensor) -> Tensor:
    """The middle of each bin in units of the largest magnitude."""
    return (torch.arange(BINS, device=like.device) + 0.5) / BINS


def _with_zero_point(observed: Range, format: Format, method: str) -> tuple[Format, Tensor]:
    """The form of an evenly spaced format whose values lie between two limits ``low <= 0 <= high``, and its scale.

    One step of the format is ``(high - low) / (2^n - 1)``, and ``-low`` in steps, rounded, is the zero point. Thereby a
    limit moves by half a step at most.
    """
    check_method(method)
    low, high = (-observed.minimum).clamp(min=0).item(), observed.maximum.clamp(min=0).item()
    if method == "percentile":
        low, high = _percentile_on_each_side(observed, low, high)
    elif method == "mse":
        low, high = _limits_of_least_error(observed, low, high, 2**format.bits - 1)
    step = max((low + high) / (2**format.bits - 1), FLOOR)
    form = format.with_zero_point(min(round(low / step), 2**format.bits - 2))
    return form, torch.full_like(observed.minimum, step / form.unit)


def _percentile_on_each_side(observed: Range, low: float, high: float) -> tuple[float, float]:
    """The smallest magnitudes on both sides of 0 beyond which lies at most half of one value in ten thousand each."""
    both = observed.counts.sum(1)
    reach = []
    for side, limit in ((0, low), (1, high)):
        counts = observed.counts[:, side].clone()
        counts[:, 0] += (both - observed.counts[:, side]).sum(1)  # all values of the other side count as covered
        part = _covering(counts, (1 + PERCENTILE) / 2)
        reach.append(min((observed.magnitude * part).item(), limit))
    return reach[0], reach[1]


def _limits_of_least_error(observed: Range, low: float, high: float, codes: int) -> tuple[float, float]:
    """Of 300 pairs of limits, those of least mean-square error: either side or both are clipped, in hundredths."""
    part, whole = _CANDIDATES.double(), torch.ones(len(_CANDIDATES), dtype=torch.float64)
    lows, highs = torch.cat([part, part, whole]) * low, torch.cat([part, whole, part]) * high
    centers = observed.magnitude.double().cpu() * _centers(part)
    steps = ((lows + highs) / codes)[:, None].clamp(min=FLOOR)
    zero_points = (lows[:, None] / steps).round()
    error = torch.zeros(len(lows), dtype=torch.float64)
    for values, counts in zip((-centers, centers), observed.counts[0].cpu(), strict=True):
        used = counts > 0
        rounded = (values[used] / steps).round().clamp(-zero_points, codes - zero_points) * steps
        error += (rounded - values[used]).square() @ counts[used]
    best = int(error.argmin())
    return lows[best].item(), highs[best].item()
