"""Activations with few levels whose range or thresholds are learned: `DTReLU`, `DDTReLU`, and the averaged range.

Each of them replaces a ReLU. With N bits the output takes 2^N values. The range starts from the first batch that is
seen in training, and the gradient passes the rounding straight through (Bengio et al. 2013, arXiv 1308.3432).
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.core.vocabulary import did_you_mean

LARGEST_BITS = 8
FIRST_SHARE = 0.999
"""The range starts at the value that this share of the first batch does not exceed."""

SCALES = ("lsq", "none")

HALF = (torch.bfloat16, torch.float16)
"""Types too coarse to find one of 256 levels in: what has them is rounded in float32."""


class DTReLU(nn.Module):
    """ReLU, clipped to a learned range [a, b] and rounded to 2^N evenly spaced levels (ties to even).

    ``t = (relu(x) - a) / (b - a)``, ``y = a + (b - a) round(L clip(t, 0, 1)) / L`` with ``L = 2^N - 1`` and
    ``b = a + softplus(beta)``, so that the range is never empty. Gradients, with r the rounded t:
    by x 1 inside the range and 0 outside; by a (b fixed) 1 below, t - r inside, 0 above; by b (a fixed) 0, r - t, 1.

    Args:
        bits: N, from 1 to 8.
        learn_lower: whether a is learned; else it is 0.
        scale: ``lsq`` multiplies the gradients of a and b by ``L^1.5 / sqrt(n)``, with n activations per image. This
            is LSQ's ``1 / sqrt(n L)`` for the step (Esser et al. 2020, arXiv 1902.08153), carried over to the end of
            the range, which is L steps away. ``none`` leaves them as they are, as in PACT (arXiv 1805.06085).

    Raises:
        ValueError: bits outside 1..8; unknown scale.
    """

    is_leaf = True  # of traced graphs

    def __init__(self, bits: int = 4, *, learn_lower: bool = False, scale: str = "lsq"):
        super().__init__()
        check_bits(bits)
        if scale not in SCALES:
            raise ValueError(f"expected scale {' | '.join(SCALES)}, got {scale!r}")
        self.steps, self.scale = 2**bits - 1, scale
        self.lower = nn.Parameter(torch.zeros(()), requires_grad=learn_lower)
        self.beta = nn.Parameter(inverse_softplus(torch.ones(())))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def upper(self) -> Tensor:
        """b, the end of the range."""
        return self.lower + F.softplus(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(x)
        if self.training and not self.started:
            self._start(z)
        lower, upper = self.lower, self.upper
        if self.scale == "lsq":
            factor = self.steps**1.5 / math.sqrt(x[0].numel())
            lower, upper = scaled_gradient(lower, factor), scaled_gradient(upper, factor)
        return fake_quantized(z, lower, upper, self.steps)

    @torch.no_grad()
    def _start(self, z: Tensor) -> None:
        span = (first_range(z) - self.lower).clamp(min=1e-3)
        self.beta.copy_(inverse_softplus(span))
        self.started.fill_(True)

    def extra_repr(self) -> str:
        return f"{self.steps + 1} levels"


class AveragedRange(nn.Module):
    """ReLU, clipped to [0, b] and rounded to 2^N levels, where b is a moving average of the largest values of batches.

    ``b <- decay b + (1 - decay) max relu(x)`` in training; no gradient reaches b (Jacob et al. 2018, arXiv 1712.05877).

    Raises:
        ValueError: bits outside 1..8.
    """

    is_leaf = True  # of traced graphs

    def __init__(self, bits: int = 4, *, decay: float = 0.99):
        super().__init__()
        check_bits(bits)
        self.steps, self.decay = 2**bits - 1, decay
        self.register_buffer("upper", torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(x)
        if self.training:
            with torch.no_grad():
                largest = z.amax().float()
                moved = self.decay * self.upper + (1 - self.decay) * largest
                self.upper.copy_(torch.where(self.started, moved, largest).clamp(min=1e-3))
                self.started.fill_(True)
        return fake_quantized(z, torch.zeros_like(self.upper), self.upper, self.steps)

    def extra_repr(self) -> str:
        return f"{self.steps + 1} levels"


class DDTReLU(nn.Module):
    """A staircase with learned thresholds: ``y = q #{i : x > T_i}``, with K = 2^N - 1 thresholds T_1 < ... < T_K.

    The parameters are a start s and widths a_i > 0 (softplus keeps them positive). The knots are ``B_0 = s`` and
    ``B_i = B_(i-1) + a_i``; a threshold lies in the middle between two knots, ``T_i = B_(i-1) + a_i / 2``. The gradient
    is that of the piecewise linear function through the points (B_i, q i): N2UQ (Liu et al. 2022, arXiv 2111.14826).
    The step q of the output is learned, too.

    Raises:
        ValueError: bits outside 1..8.
    """

    is_leaf = True  # of traced graphs

    def __init__(self, bits: int = 4):
        super().__init__()
        check_bits(bits)
        count = 2**bits - 1
        self.start = nn.Parameter(torch.zeros(()))
        self.raw_widths = nn.Parameter(inverse_softplus(torch.full((count,), 1 / count)))
        self.step = nn.Parameter(torch.tensor(1 / count))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def widths(self) -> Tensor:
        """a_1, ..., a_K."""
        return F.softplus(self.raw_widths)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.started:
            self._begin(F.relu(x))
        return self.step * stairs(x, self.start, self.widths)

    @torch.no_grad()
    def _begin(self, z: Tensor) -> None:
        width = first_range(z).clamp(min=1e-3) / len(self.raw_widths)
        self.raw_widths.copy_(inverse_softplus(width.expand_as(self.raw_widths)))
        self.step.copy_(width)
        self.started.fill_(True)

    def extra_repr(self) -> str:
        return f"{len(self.raw_widths) + 1} levels"


FEW_LEVELS = (DTReLU, DDTReLU, AveragedRange)
"""Activations whose output takes 2^N values."""

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "DTReLU": DTReLU,
    "DDTReLU": DDTReLU,
    "jacob_ema": AveragedRange,
    "DTReLU_lower": functools.partial(DTReLU, learn_lower=True),
}
"""Name -> activation of a number of bits."""


def parse(name: str) -> Callable[[], nn.Module]:
    """The activation of a name such as ``DTReLU_4`` (4 bits), as a function that makes one.

    Raises:
        ValueError: unknown name; no number of bits, or one outside 1..8.
    """
    kind, _, bits = name.rpartition("_")
    if kind not in ACTIVATIONS or not bits.isdigit():
        raise ValueError(did_you_mean("activation", name, [f"{kind}_4" for kind in ACTIVATIONS]))
    check_bits(int(bits))
    return functools.partial(ACTIVATIONS[kind], int(bits))


def check_bits(bits: int) -> None:
    """Raise a ValueError unless the number of bits is from 1 to 8."""
    if not 1 <= bits <= LARGEST_BITS:
        raise ValueError(f"expected 1 to {LARGEST_BITS} bits, that is 2 to {2**LARGEST_BITS} levels, got {bits} bits")


def first_range(z: Tensor) -> Tensor:
    """The value that all but one in a thousand of the elements of z do not exceed (in a million of them)."""
    return torch.quantile(z.detach().flatten()[: 2**20].float(), FIRST_SHARE)


def inverse_softplus(y: Tensor) -> Tensor:
    """The x with ``log(1 + exp(x)) = y``, for y > 0."""
    return y + torch.log(-torch.expm1(-y))


def fake_quantized(x: Tensor, lower: Tensor, upper: Tensor, steps: int) -> Tensor:
    """``a + (b - a) round(L clip((x - a) / (b - a), 0, 1)) / L``, ties to even; gradients as those of `DTReLU` by z.

    Args:
        x: any shape.
        lower, upper: a and b, a number each, or tensors that broadcast against x (one per output channel). A range of
            width zero is widened, so that all values become a.
        steps: L, one less than the number of levels.
    """
    exact = x.float() if x.dtype in HALF else x
    return _FakeQuantized.apply(exact, lower, upper, steps).to(x.dtype)


class _FakeQuantized(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: Tensor, upper: Tensor, steps: int) -> Tensor:
        span, t = _placed(x, lower, upper)
        return torch.addcmul(lower, span, _rounded(t, steps))

    @staticmethod
    def setup_context(context, inputs: tuple, output: Tensor) -> None:
        *tensors, context.steps = inputs
        context.save_for_backward(*tensors)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple:
        x, lower, upper = context.saved_tensors
        _, t = _placed(x, lower, upper)
        by_x = torch.where(t == t.clamp(0, 1), gradient, 0)
        if not any(context.needs_input_grad[1:3]):
            return by_x, None, None, None
        by_upper = gradient * _rounded(t, context.steps) - by_x * t
        by_lower = gradient - by_x - by_upper if context.needs_input_grad[1] else None
        by_lower, by_upper = (
            None if by is None else by.sum_to_size(end.shape) for by, end in ((by_lower, lower), (by_upper, upper))
        )
        return by_x, by_lower, by_upper, None


def _placed(x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """(b - a, place of x in the range, which is [0, 1] there)."""
    span = (upper - lower).clamp(min=torch.finfo(x.dtype).tiny)
    return span, (x - lower) / span


def _rounded(t: Tensor, steps: int) -> Tensor:
    """The nearest of ``steps + 1`` levels from 0 to 1."""
    return t.clamp(0, 1).mul_(steps).round_().div_(steps)


def stairs(x: Tensor, start: Tensor, widths: Tensor) -> Tensor:
    """The number of thresholds below each element of x, as in `DDTReLU`; differentiable in all three."""
    return _Stairs.apply(x.to(widths.dtype), start, widths).to(x.dtype)


class _Stairs(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, start: Tensor, widths: Tensor) -> Tensor:
        count = torch.searchsorted(knots_of(start, widths)[:-1] + widths / 2, x.contiguous()).to(x.dtype)
        return torch.where(x.isnan(), x, count)  # else nobody would see that the weights before it became NaN

    @staticmethod
    def setup_context(context, inputs: tuple, output: Tensor) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple:
        x, start, widths = context.saved_tensors
        knots, count = knots_of(start, widths), len(widths)
        piece = torch.searchsorted(knots, x.contiguous()) - 1  # in [0, K) between two knots
        inside = (piece >= 0) & (piece < count)
        piece = piece.clamp(0, count - 1)
        slope = gradient * inside / widths[piece]
        moved = slope * (x - knots[piece]) / widths[piece]
        sums, weighted = (torch.zeros_like(widths).index_add(0, piece.flatten(), by.flatten()) for by in (slope, moved))
        later = sums.flip(0).cumsum(0).flip(0) - sums  # a wider piece moves all later ones to the right
        return slope, -sums.sum(), -later - weighted


def knots_of(start: Tensor, widths: Tensor) -> Tensor:
    """B_0, ..., B_K."""
    return start + torch.cat([torch.zeros_like(widths[:1]), widths.cumsum(0)])


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by a factor."""
    return (x - x * factor).detach() + x * factor
