"""Learned thresholds as they are often written: three forms that lose their levels in training, beside `DDTReLU`.

Each has K thresholds T_1 < ... < T_K above 0, and output levels 0, ..., K. Training moves the thresholds alone, so that
the output comes close to x; `levels_left` shows how many levels are still used afterwards.
"""

import functools
from collections.abc import Callable

import pandas
import torch
from torch import Tensor

from rqlib.defenses.activations import DDTReLU

USED_SHARE = 1e-3
"""A level is used if at least this share of the elements has it."""


def midpoint(x: Tensor, thresholds: Tensor) -> Tensor:
    """The middle of the interval that x lies in: ``(T_i + T_(i+1)) / 2``, with ``T_0 = 0``, and T_K above the last.

    Differentiated as it is written, it moves the levels with the thresholds: they drift to where most elements are.
    """
    ends = torch.cat([torch.zeros_like(thresholds[:1]), thresholds, thresholds[-1:]])
    return ((ends[1:] + ends[:-1]) / 2)[torch.searchsorted(thresholds, x)]


def one_sided(x: Tensor, thresholds: Tensor) -> Tensor:
    """The lower end of the interval that x lies in: ``T_i``, with ``T_0 = 0``.

    Only elements above a threshold reach it, and all of them pull it up: each one drifts to the next, the last one to
    the largest x, until two values are left.
    """
    return torch.cat([torch.zeros_like(thresholds[:1]), thresholds])[torch.searchsorted(thresholds, x)]


def count_based(x: Tensor, thresholds: Tensor, step: float) -> Tensor:
    """``q #{i : x > T_i}`` with a step q, as in `DDTReLU`, but a threshold is moved by numbers of elements alone.

    The gradient by T_i is the share of elements between T_i and T_(i+1) minus the share between T_(i-1) and T_i,
    whatever the errors of these elements are: every threshold flees to where fewer elements are. (With the other sign
    all levels would get equally many elements, again whatever the errors are.)
    """
    return step * _ByCounts.apply(x, thresholds)


class _ByCounts(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, thresholds: Tensor) -> Tensor:
        level = torch.searchsorted(thresholds, x)
        context.save_for_backward(level, thresholds)
        return level.to(x.dtype)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple:
        level, thresholds = context.saved_tensors
        shares = torch.bincount(level.flatten(), minlength=len(thresholds) + 1).to(gradient) / level.numel()
        return None, shares.diff()


FORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "midpoint": lambda x, thresholds, step: midpoint(x, thresholds),
    "one_sided": lambda x, thresholds, step: one_sided(x, thresholds),
    "count_based": count_based,
}
"""Name -> output, from (x, sorted thresholds, step of evenly spaced levels)."""


def levels_left(x: Tensor, *, bits: int = 3, steps: int = 400, rate: float = 0.1) -> pandas.DataFrame:
    """Train the thresholds of every form alone, so that its output comes close to x: which levels are still used?

    The thresholds start evenly spaced over the range of x. The loss is the mean of (y - x)^2, the optimizer Adam.

    Args:
        x: signals at an activation, (n,), at least 0.
        bits: 1 to 8, for 2^bits levels.
        steps, rate: of Adam.

    Returns:
        One row per form, DDTReLU first: form, levels (that at least one element in a thousand has), squared_error.

    Raises:
        ValueError: bits outside 1..8.
    """
    reference = DDTReLU(bits).to(x.device)
    reference(x)  # sets its range
    step = reference.step.item()
    start = step * (torch.arange(len(reference.raw_widths), device=x.device) + 0.5)
    rows = [_row("DDTReLU", lambda: reference(x), [reference.start, reference.raw_widths], x, steps, rate)]
    for name, form in FORMS.items():
        thresholds = start.clone().requires_grad_()
        output = functools.partial(lambda form, thresholds: form(x, thresholds.sort().values, step), form, thresholds)
        rows.append(_row(name, output, [thresholds], x, steps, rate))
    return pandas.DataFrame(rows)


def _row(form: str, output: Callable[[], Tensor], learned: list[Tensor], x: Tensor, steps: int, rate: float) -> dict:
    """One line of the table, after training."""
    optimizer = torch.optim.Adam(learned, rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (output() - x).square().mean().backward()
        optimizer.step()
    y = output().detach()
    counts = y.unique(return_counts=True)[1]
    used = int((counts >= USED_SHARE * y.numel()).sum())
    return {"form": form, "levels": used, "squared_error": (y - x).square().mean().item()}
