"""The integer form of a quantized network must compute what the network computes: compared signal by signal.

A difference in one signal would change all later ones, and comparing those would say little. So both networks are given
the same signals: wherever a signal is quantized, the two results are compared, and then both go on with that of the
integer form. What is left are values so close to the middle between two values of the format that one network rounds
them up and the other down: a difference of at most one step.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn

from rqlib.core.derived import NotEqual
from rqlib.quantization import rounding
from rqlib.quantization.fake_quantize import Quantized

SLACK = {"float64": 1e-6, "float32": 1e-5, "int8": 1e-5}
"""Arithmetic -> by how much of the largest value of a signal two sums of it may differ, however fine the format is."""
LOGITS = 1e-4
"""By how much of the largest logit two logits may differ that are computed from the same signals."""

Judge = Callable[[str, Tensor], Tensor]


@torch.no_grad()
def check(reference: nn.Module, lowered: fx.GraphModule, x: Tensor, *, arithmetic: str, batch_size: int) -> None:
    """Raise unless an integer form computes what a quantized network computes.

    On x every quantized signal may differ by one step of its format or by `SLACK`, and the logits by `LOGITS`. Then x
    is repeated to a batch of at least ``batch_size`` images, with its memory in another order, and the integer form is
    compared with itself in the same way.

    Args:
        reference: the quantized network in float64.
        lowered: its integer form, in an ``arithmetic``.
        x: images (B, C, H, W) in [0, 1].

    Raises:
        NotEqual: names the first signal that differs, and says by how many steps and in what batch.
    """
    points = {name: point for name, point in reference.quantizers.named_children() if isinstance(point, Quantized)}
    worth = {name: lowered.quantizers.get_submodule(name).value_of_code for name in points}
    codes: dict[str, Tensor] = {}

    def keep(name: str, codes_now: Tensor) -> Tensor:
        codes[name] = codes_now.clone()
        return codes_now

    with _instead(lowered, points, keep):
        logits = lowered(x)

    def values(name: str, signal: Tensor) -> Tensor:
        expected = codes[name].double() * worth[name]
        _compare(name, points[name], signal, expected, arithmetic, len(x))
        return expected

    repeats = -(-batch_size // len(x))

    def repeated(name: str, signal: Tensor) -> Tensor:
        expected = codes[name]
        if expected.shape != signal.shape:  # else it does not depend on the images, as a standardized weight
            expected = expected.expand(repeats, *expected.shape).flatten(0, 1)
        _compare(name, points[name], signal, expected, arithmetic, len(many), worth=worth[name])
        return expected

    with _instead(reference, points, values):
        _compare_logits(reference(x.double()), logits, len(x))
    many = x.contiguous().repeat(repeats, 1, 1, 1)
    with _instead(lowered, points, repeated):
        _compare_logits(lowered(many), logits.repeat(repeats, 1), len(many))


@contextlib.contextmanager
def _instead(network: nn.Module, points: dict[str, Quantized], judge: Judge) -> Iterator[None]:
    """Inside the block, ``judge(name, signal)`` takes the place of every quantized signal of a network."""

    def hook(name: str) -> Callable:
        return lambda module, inputs, signal: judge(name, signal)

    handles = [network.quantizers.get_submodule(name).register_forward_hook(hook(name)) for name in points]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compare(
    name: str, point: Quantized, one: Tensor, other: Tensor, arithmetic: str, images: int, *, worth: float = 1.0
) -> None:
    """Raise if two values of a signal, in units of ``worth``, differ by more than a step of its format."""
    differing = one != other  # NaN differs from everything
    if not differing.any():
        return
    count, largest = one.numel(), other.abs().max().double() * worth
    one, other = (signal[differing].double() * worth for signal in (one, other))
    step = _step(point, torch.maximum(one.abs(), other.abs()))
    differences = (one - other).abs()
    allowed = (1 + 1e-6) * step + SLACK[arithmetic] * largest
    wrong = ~(differences <= allowed)  # NaN is wrong, too
    if wrong.any():
        raise NotEqual(
            f"the integer form ({arithmetic}) differs from the quantized network first at signal {name}: "
            f"{int(wrong.sum())} of {count} values are off by up to {(differences / step).max():.3g} steps of "
            f"{point.format.name} in a batch of {images} images, expected at most 1; score the quantized network itself"
        )


def _step(point: Quantized, magnitudes: Tensor) -> Tensor:
    """The distance from values to the next larger ones of a point's format; the width of the hole of a legacy one."""
    format, scale = point.format, point.scale.double()
    power = rounding.power_of_two((magnitudes / scale).contiguous()).clamp(min=format.smallest_normal)
    step = power * 2.0**-format.mantissa_bits
    if format.legacy:
        step = torch.where(power == format.smallest_normal, format.smallest_normal, step)
    return step * scale


def _compare_logits(one: Tensor, other: Tensor, images: int) -> None:
    error = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)
    if not error <= LOGITS:
        raise NotEqual(
            f"the integer form differs from the quantized network behind the last quantized signal: logits are off by "
            f"{error:.2g} of the largest one in a batch of {images} images, expected at most {LOGITS:g}; score the "
            "quantized network itself"
        )
