"""The form of a format that a signal takes: the format itself, its unsigned form, or an INT with a zero point.

A signal that is never negative needs no codes for negative values, and one that is seldom or little negative, as behind
a SiLU or a hardswish, needs few of them.
"""

import torch
from torch import Tensor

from rqlib.quantization import observers
from rqlib.quantization.formats import Format
from rqlib.quantization.observers import Range

NONNEGATIVE = ("unsigned", "zero_point", "signed")


def check(word: str) -> None:
    """Raise a ValueError for a word that `fitting` does not know."""
    if word not in NONNEGATIVE:
        raise ValueError(f"expected nonnegative {' | '.join(NONNEGATIVE)}, got {word!r}")


def fitting(observed: Range, format: Format, method: str, nonnegative: str = "unsigned") -> tuple[Format, Tensor]:
    """The form of a format that a signal takes, and its scale, (1,) float32.

    Args:
        observed: the range of the signal; one row.
        method: as in `observers.scale`. With a zero point ``minmax`` clips nothing, ``percentile`` at most half of one
            value in ten thousand on each side of 0, and ``mse`` what gives the least mean-square error: no more than
            the format itself has.
        nonnegative: ``signed``: the format itself. ``unsigned``: its unsigned form if no value is negative.
            ``zero_point``: the same, and a signal with negative values takes the INT of as many bits with the zero
            point that suits it, if the values of the format are evenly spaced (INT, POT_2 and FLOAT_n_E1).
    """
    check(nonnegative)
    negative = bool((observed.minimum < 0).any())
    if negative and nonnegative == "zero_point" and format.is_evenly_spaced:
        return _with_zero_point(observed, format, method)
    form = format if negative or nonnegative == "signed" else format.unsigned
    return form, observers.scale(observed, form, method)


def _with_zero_point(observed: Range, format: Format, method: str) -> tuple[Format, Tensor]:
    """An INT with a zero point, and its scale, for a signal that has negative values."""
    observers.check_method(method)
    most = 2**format.bits - 1
    below = (-observed.minimum).double().cpu().clamp(min=observers.FLOOR)
    above = observed.maximum.double().cpu().clamp(min=observers.FLOOR)
    if method == "mse":
        zero_point, step = _of_least_error(observed, below, above, most)
    else:
        if method == "percentile":
            below, above = _percentiles(observed, below, above)
        zero_points, steps = _aligned(below, above, most)
        finest = steps.argmin()
        zero_point, step = zero_points[finest], steps[finest]
    form = format.with_zero_point(int(zero_point))
    return form, torch.full_like(observed.minimum, step.item() / form.unit)


def _aligned(below: Tensor, above: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Zero points z and steps s, (2 N,), two per pair of N limits: ``z s >= below`` and ``(most - z) s >= above``.

    The two are the whole numbers next to ``most below / (below + above)``; one of them has the smallest possible step.
    The limits are magnitudes above 0.
    """
    ideal = most * below / (below + above)
    zero_points = torch.cat([ideal.floor(), ideal.ceil()]).clamp(1, most - 1)
    return zero_points, torch.maximum(below.repeat(2) / zero_points, above.repeat(2) / (most - zero_points))


def _percentiles(observed: Range, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest magnitudes, one for each side of 0, beyond which lie at most 0.005% of all values."""
    limits = []
    for side, limit in enumerate((below, above)):
        counts = observed.counts[:, side].clone()
        counts[:, 0] += observed.counts[:, 1 - side].sum(1)  # values on the other side of 0 are not beyond
        part = observers.covering(counts, (1 + observers.PERCENTILE) / 2)
        limits.append(torch.minimum((observed.magnitude * part).double().cpu(), limit).clamp(min=observers.FLOOR))
    return limits[0], limits[1]


def _of_least_error(observed: Range, below: Tensor, above: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The zero point and the step of least mean-square error of rounding and clipping.

    Tried are limits of 1%, 2%, ... 100% of what was seen, on either side of 0 or on both, without and with negative
    values, and the steps that the signed format would try. Where a step is smaller than a bin of the histogram, its
    mean-square error of rounding is ``step^2 / 12``.
    """
    parts = observers.CANDIDATES.double()
    whole, no_negative = torch.ones_like(parts), torch.zeros_like(parts)
    zero_points, steps = _aligned(
        torch.cat([parts, parts, whole]) * below, torch.cat([parts, whole, parts]) * above, most
    )
    as_signed = torch.full_like(parts, most // 2)  # with it all values of the signed format are values
    zero_points = torch.cat([zero_points, no_negative, as_signed])
    steps = torch.cat([steps, parts * above / most, parts * torch.maximum(below, above) / as_signed])
    step, zero_point = steps[:, None], zero_points[:, None]
    magnitude = observed.magnitude.double().cpu()
    centers, is_fine = magnitude * observers.centers(parts), step < magnitude / observers.BINS
    error = torch.zeros_like(steps)
    for values, counts in zip((-centers, centers), observed.counts[0].cpu(), strict=True):
        some = counts > 0
        codes = values[some] / step
        inside = codes.clamp(-zero_point, most - zero_point)
        rounding = torch.where(is_fine, 1 / 12, (inside.round() - inside).square())
        error += ((rounding + (inside - codes).square()) * step.square()) @ counts[some]
    best = error.argmin()
    return zero_points[best], steps[best]
