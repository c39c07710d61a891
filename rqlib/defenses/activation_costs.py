"""Seconds that activations take, forward and backward, against the number of elements."""

from collections.abc import Sequence

import pandas
import torch
from torch import Tensor, nn
from torch.utils import benchmark

from rqlib.core import runtime
from rqlib.defenses.activations import AveragedRange, DDTReLU, DTReLU, knots_of


def costs(
    *, bits: int = 4, elements: Sequence[int] = tuple(4**power for power in range(5, 10)), least_seconds: float = 0.05
) -> pandas.DataFrame:
    """Seconds for the forward and backward pass of every kind of activation, on the device in use.

    Args:
        bits: of all that have levels.
        elements: numbers of elements, one row per kind and number.
        least_seconds: that one row is measured for; it is the median of its repetitions.

    Returns:
        activation, elements, seconds. ``DDTReLU, loop`` computes the same as DDTReLU by one pass over all elements for
        each threshold (`stairs_by_loop`).

    Raises:
        ValueError: bits outside 1..8.
    """
    made = {
        "ReLU": nn.ReLU(),
        "DTReLU": DTReLU(bits),
        "jacob_ema": AveragedRange(bits),
        "DDTReLU": DDTReLU(bits),
        "DDTReLU, loop": _Loop(bits),
    }
    rows = []
    for count in elements:
        x = runtime.active().place(torch.randn(1, count, generator=runtime.rng(0)))
        for name, layer in made.items():
            runtime.active().place(layer)(x)  # starts the range
            rows.append({"activation": name, "elements": count, "seconds": _seconds(layer, x, least_seconds)})
    return pandas.DataFrame(rows)


def stairs_by_loop(x: Tensor, start: Tensor, widths: Tensor) -> Tensor:
    """As `activations.stairs`, with ``torch.where`` over all elements for each of the K thresholds."""
    knots = knots_of(start, widths)
    levels, line = torch.zeros_like(x), torch.zeros_like(x)
    for place, width in enumerate(widths):
        inside = (x > knots[place]) & (x <= knots[place + 1])
        line = torch.where(inside, place + (x - knots[place]) / width, line)
        levels = torch.where(x > knots[place] + width / 2, place + 1.0, levels)
    return levels.detach() + line - line.detach()


class _Loop(DDTReLU):
    """DDTReLU by a loop over its thresholds."""

    def forward(self, x: Tensor) -> Tensor:
        return self.step * stairs_by_loop(x, self.start, self.widths)


def _seconds(layer: nn.Module, x: Tensor, least_seconds: float) -> float:
    """The median time of one forward and backward pass."""
    x = x.clone().requires_grad_()
    ones = torch.ones_like(x)

    def both() -> None:
        layer(x).backward(ones)

    threads = torch.get_num_threads()
    timer = benchmark.Timer("both()", globals={"both": both}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=least_seconds).median
