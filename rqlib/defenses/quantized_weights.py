"""Weights that are rounded while a network is trained, so that it learns to live with them: two parametrizations.

``torch.nn.utils.parametrize.register_parametrization(layer, "weight", parse("range_8")(layer))`` lets a layer compute
with rounded weights, while the optimizer moves the exact ones. Rounding is to even, and the gradient passes straight
through it (Bengio et al. 2013, arXiv 1308.3432).
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rqlib.core.vocabulary import did_you_mean
from rqlib.defenses.activations import check_bits, fake_quantized, scaled_gradient

STEP_BITS = 15
"""Significant bits of the step of `RangeQuantized`: its products with whole numbers up to 2^8 are exact in float32."""


class RangeQuantized(nn.Module):
    """The weights on 2^N evenly spaced levels between their own smallest and largest value, found anew at every call.

    ``y = s clip(round(w / s), -z, L - z)`` with ``L = 2^N - 1``, ``s = (b - a) / L`` and ``z = round(-a / s)``, where
    [a, b] is the range of the weights and 0. So 0 is a level, pruned weights stay 0, and the range moves by at most
    half a step. The gradient by w is 1 everywhere; none reaches the range. Applied to its own result, it changes
    nothing: weights that were saved rounded stay as they are.

    Raises:
        ValueError: bits outside 1..8.
    """

    def __init__(self, bits: int = 8):
        super().__init__()
        check_bits(bits)
        self.steps = 2**bits - 1

    def forward(self, w: Tensor) -> Tensor:
        exact = w.detach()
        lower, upper = exact.amin().clamp(max=0), exact.amax().clamp(min=0)
        step = _truncated((upper - lower) / self.steps).clamp(min=torch.finfo(w.dtype).tiny)
        zero = torch.floor(-lower / step + 0.5)  # upwards in a tie, so that both ends of the range stay levels
        codes = torch.round(exact / step + zero).clamp(0, self.steps)
        return step * (codes - zero) + (w - exact)

    def right_inverse(self, w: Tensor) -> Tensor:
        """The exact weights to start from: the given ones."""
        return w

    def extra_repr(self) -> str:
        return f"{self.steps + 1} levels"


class LearnedStep(nn.Module):
    """The weights on the multiples -Q s, ..., Q s of a learned step s, with ``Q = 2^(N - 1) - 1``: LSQ.

    ``y = s round(clip(w / s, -Q, Q))``. By w the gradient is 1 inside the range and 0 outside; by s it is
    ``round(w / s) - w / s`` inside, and -Q or Q outside, times ``1 / sqrt(n Q)`` for n weights. The step starts at
    ``2 mean|w| / sqrt(Q)``. Source: Esser et al. 2020, arXiv 1902.08153; there the grid also has -(Q + 1) s.

    Args:
        bits: N, from 2 to 8.
        weight: of the layer, whose step starts from it.

    Raises:
        ValueError: bits outside 2..8.
    """

    def __init__(self, bits: int, weight: Tensor):
        super().__init__()
        _check_signed(bits)
        self.largest = 2 ** (bits - 1) - 1
        start = 2 * weight.detach().abs().mean() / math.sqrt(self.largest)
        self.step = nn.Parameter(start.clamp(min=1e-12))

    def forward(self, w: Tensor) -> Tensor:
        step = scaled_gradient(self.step, 1 / math.sqrt(w.numel() * self.largest)).abs()
        return fake_quantized(w, -self.largest * step, self.largest * step, 2 * self.largest)

    def right_inverse(self, w: Tensor) -> Tensor:
        """The exact weights to start from: the given ones."""
        return w

    def extra_repr(self) -> str:
        return f"{2 * self.largest + 1} levels"


FORMATS: dict[str, Callable[[int, nn.Module], nn.Module]] = {
    "range": lambda bits, layer: RangeQuantized(bits),
    "LSQ": lambda bits, layer: LearnedStep(bits, layer.weight),
}
"""Name -> parametrization of the weight of a layer, from (number of bits, layer)."""


def parse(name: str) -> Callable[[nn.Module], nn.Module]:
    """The parametrization of a name such as ``range_8`` (8 bits) or ``LSQ_4``, as a function of the layer.

    Raises:
        ValueError: unknown name; no number of bits, or one outside 1..8 (LSQ: 2..8).
    """
    kind, _, bits = name.rpartition("_")
    if kind not in FORMATS or not bits.isdigit():
        raise ValueError(did_you_mean("weight format", name, [f"{kind}_4" for kind in FORMATS]))
    (_check_signed if kind == "LSQ" else check_bits)(int(bits))
    return functools.partial(FORMATS[kind], int(bits))


def _check_signed(bits: int) -> None:
    """Raise a ValueError unless the number of bits is from 2 to 8."""
    check_bits(bits)
    if bits == 1:
        raise ValueError("expected 2 to 8 bits for LSQ, got 1 bit, whose only level would be 0; choose range_1")


def _truncated(x: Tensor) -> Tensor:
    """x >= 0 with `STEP_BITS` significant bits, the others cut off."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.floor(mantissa * 2**STEP_BITS), exponent - STEP_BITS)
