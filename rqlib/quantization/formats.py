"""Number formats: INT, POT and FLOAT are one family, with one formula for rounding.

A format has n bits: a sign, e exponent bits and m = n - 1 - e mantissa bits. Before scaling its values are 0, the
normal values ``+-(1 + k / 2^m) 2^x`` for ``x = 2 - 2^(e-1) ... 2^(e-1)``, and the subnormal values
``+-(k / 2^m) 2^(smallest x)``. No code stands for infinity or NaN. With e = 1 the values are evenly spaced: up to the
scale that is INT. With m = 0 they are 0 and the signed powers of two: that is POT. Before a tensor is rounded it is
divided by the scale ``max|x| / Q``, where Q is the largest value of the format.

The unsigned form of a format (`Format.unsigned`) has as many bits and no negative values: the bit of the sign becomes
one more mantissa bit, or one more exponent bit of a POT. It suits signals that are never negative, such as those
behind a ReLU. An INT may also have a zero point z (`Format.with_zero_point`): code c stands for c - z, so that z of its
2^n values are negative, one is 0 and the others are positive. It suits signals that are seldom or little negative, such
as those behind a SiLU.
"""

import functools
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from rqlib.core.vocabulary import did_you_mean
from rqlib.quantization import rounding

KINDS = ("INT", "POT", "FLOAT")
LARGEST_BITS, LARGEST_EXPONENT_BITS = 32, 7  # 7 exponent bits: values up to 2^65, within float32


@dataclass(frozen=True)
class Format:
    """A number format: ``Format(8, 4)`` is FLOAT_8_E4. A signed format is symmetric.

    ``legacy=True`` gives a FLOAT whose subnormal values are half as large as they should be, which leaves a hole below
    the smallest normal value. This is the mistake of the first implementation, kept only for comparison.
    ``signed=False`` gives a format without negative values (a signed format's own is `unsigned`), unless it is an INT
    with a ``zero_point``, which says how many of its values are negative.
    A ValueError says which numbers of bits are possible.
    """

    bits: int
    exponent_bits: int
    kind: str = "FLOAT"
    legacy: bool = False
    signed: bool = True
    zero_point: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"expected kind {' | '.join(KINDS)}, got {self.kind!r}")
        if not 2 <= self.bits <= LARGEST_BITS:
            raise ValueError(f"{self.name}: bits must be 2..{LARGEST_BITS} (a sign and at least one bit of value)")
        largest = min(self.bits - self.signed, LARGEST_EXPONENT_BITS)
        if not 1 <= self.exponent_bits <= largest:
            raise ValueError(f"{self.name}: exponent bits must be 1..{largest}")
        expected = {"INT": 1, "POT": self.bits - self.signed}.get(self.kind, self.exponent_bits)
        if self.exponent_bits != expected:
            raise ValueError(f"{self.name}: exponent bits must be {expected}, got {self.exponent_bits}")
        if self.legacy and (self.kind != "FLOAT" or self.mantissa_bits == 0):
            raise ValueError(f"{self.name}: only a FLOAT with mantissa bits has subnormals, and so a legacy form")
        if self.zero_point:
            if self.kind != "INT" or self.signed:
                raise ValueError(f"{self.name}: only an unsigned INT has a zero point")
            if not 0 < self.zero_point < 2**self.bits - 1:
                raise ValueError(
                    f"{self.name}: the zero point must be 0..{2**self.bits - 2}, so that one value is positive"
                )

    @property
    def name(self) -> str:
        """INT_8, POT_4, FLOAT_8_E4, FLOAT_8_E4_LEGACY; UINT_8 without a sign, UINT_8_Z12 with a zero point."""
        exponent = f"_E{self.exponent_bits}" if self.kind == "FLOAT" else ""
        end = f"_Z{self.zero_point}" if self.zero_point else "_LEGACY" if self.legacy else ""
        return f"{'' if self.signed else 'U'}{self.kind}_{self.bits}{exponent}{end}"

    @property
    def mantissa_bits(self) -> int:
        """m = n - 1 - e; without a sign, n - e."""
        return self.bits - self.signed - self.exponent_bits

    @property
    def is_evenly_spaced(self) -> bool:
        """Whether neighboring values are equally far apart: INT, POT_2, FLOAT_n_E1."""
        return self.exponent_bits == 1 and not self.legacy

    @property
    def unsigned(self) -> "Format":
        """The format of as many bits without negative values, for signals that are never negative.

        The bit of the sign becomes a mantissa bit: INT_n has 2^(n-1) - 1 positive values, UINT_n 2^n - 1. A format of
        powers of two has no mantissa; there it becomes an exponent bit, and POT_8, whose powers already span float32,
        stays as it is. Formats of equal values have unsigned forms of equal values (that of POT_2 is UINT_2).
        """
        if self.zero_point:
            return self.with_zero_point(0)
        if not self.signed or (self.exponent_bits == LARGEST_EXPONENT_BITS and self.mantissa_bits == 0):
            return self
        if self.exponent_bits == 1:  # evenly spaced values stay evenly spaced
            return Format(self.bits, 1, "INT" if self.kind == "POT" else self.kind, self.legacy, signed=False)
        exponent_bits = self.exponent_bits + (self.mantissa_bits == 0)
        return Format(self.bits, exponent_bits, self.kind, self.legacy, signed=False)

    def with_zero_point(self, zero_point: int) -> "Format":
        """The unsigned INT of as many bits with this zero point, for a format whose values are evenly spaced.

        Its values are ``-zero_point .. 2^n - 1 - zero_point`` times the smallest positive one.
        """
        if not self.is_evenly_spaced:
            raise ValueError(f"{self.name}: only evenly spaced values have a zero point")
        return Format(self.bits, 1, "INT", signed=False, zero_point=zero_point)

    @property
    def significant_bits(self) -> int:
        """m + 1. A type that keeps at least as many (TF32: 11, bfloat16: 8) holds every value of the format exactly."""
        return self.mantissa_bits + 1

    @property
    def smallest_normal(self) -> float:
        """The smallest normal value, 2^(2 - 2^(e-1))."""
        return 2.0 ** (2 - 2 ** (self.exponent_bits - 1))

    @property
    def max(self) -> float:
        """The largest value, Q = (2 - 2^-m) 2^(2^(e-1)), minus ``zero_point * unit``."""
        return (2 - 2.0**-self.mantissa_bits) * 2.0**2 ** (self.exponent_bits - 1) - self.zero_point * self.unit

    @property
    def min(self) -> float:
        """The smallest value: -Q, or without a sign ``-zero_point * unit``."""
        return -self.max if self.signed else -self.zero_point * self.unit + 0.0

    @property
    def unit(self) -> float:
        """The smallest positive value, a power of two. Every value is a whole multiple of it."""
        return self.smallest_normal * 2.0**-self.mantissa_bits / (2 if self.legacy else 1)

    @property
    def hole(self) -> float:
        """The distance between the largest subnormal and the smallest normal value of a legacy format; else 0."""
        return self.smallest_normal / 2 + self.unit if self.legacy else 0.0

    @property
    def duplicate_of(self) -> str | None:
        """Name of the INT (or else POT) with the same values; None if no format before this one has its values."""
        if self.kind == "INT" or self.legacy:
            return None
        if self.exponent_bits == 1:
            return Format(self.bits, 1, "INT", signed=self.signed).name
        if self.kind == "FLOAT" and self.mantissa_bits == 0:
            return Format(self.bits, self.exponent_bits, "POT", signed=self.signed).name
        return None

    @functools.cached_property
    def levels(self) -> Tensor:
        """All values in ascending order, in float32, which holds them exactly."""
        if self.bits > 20:
            raise ValueError(f"{self.name} has 2^{self.bits} values; they are listed up to 20 bits")
        fractions = torch.arange(2**self.mantissa_bits, dtype=torch.float64) / 2**self.mantissa_bits
        binades = self.smallest_normal * 2.0 ** torch.arange(2**self.exponent_bits - 1, dtype=torch.float64)
        subnormals = fractions[1:] * self.smallest_normal / (2 if self.legacy else 1)
        positive = torch.cat([subnormals, torch.outer(binades, 1 + fractions).flatten()])
        negative = -positive[: len(positive) if self.signed else self.zero_point].flip(0)
        positive = positive[: len(positive) - self.zero_point]
        return torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).float()

    def round(self, x: Tensor) -> Tensor:
        """The value of the format that is nearest to each element of x; ties go to even, the result is clipped.

        The result is ``round_half_even(x / step) step`` with ``step = max(2^floor(log2 |x|), smallest normal) 2^-m``,
        clipped to `min` .. `max` (`rounding`). So infinities become the largest and the smallest
        value. NaN stays NaN, and no zero is negative. Gradients do not pass.

        Args:
            x: any shape, already divided by the scale. float32 or float64; narrower types are rounded in float32 and
                returned in their own type. A TypeError refuses what is not floating point.
        """
        if not x.is_floating_point():
            raise TypeError(f"{self.name}: expected floating point values to round, got {x.dtype}")
        wide = x.detach().to(torch.float64 if x.dtype == torch.float64 or self.mantissa_bits > 21 else torch.float32)
        smallest_normal = self.smallest_normal / (2 if self.legacy else 1)
        rounded = rounding.clipped(wide, self.min, self.max, smallest_normal, self.mantissa_bits)
        return (_out_of_the_hole(self, wide, rounded) if self.legacy else rounded).to(x.dtype)

    def round_scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """``scale round(x / scale)`` with the values of `round`; in less time for float32 and one scale.

        Args:
            x: any shape, floating point.
            scale: one number, (1,), or a tensor that broadcasts against x (one scale per channel).
        """
        single = scale.numel() == 1 and x.dtype == scale.dtype == torch.float32
        if self.legacy or self.mantissa_bits > 21 or not single:
            return self.round(x / scale) * scale
        grid = (self.min, self.max, self.smallest_normal, self.mantissa_bits)
        return rounding.clipped(x.detach(), *grid, scale=scale.detach())

    def round_compiled(self, x: Tensor) -> Tensor:
        """The same values as `round`, of a float32 tensor, by one compiled loop (`rounding.clipped_compiled`).

        A ValueError refuses other types and formats that are legacy or too fine for float32.
        """
        if x.dtype != torch.float32 or self.legacy or self.mantissa_bits > 21:
            raise ValueError(f"{self.name} of {x.dtype}: the compiled loop is for float32; use Format.round")
        return rounding.clipped_compiled(x, self.min, self.max, self.smallest_normal, self.mantissa_bits)


def _out_of_the_hole(format: Format, x: Tensor, rounded: Tensor) -> Tensor:
    """Move values between the largest subnormal and the smallest normal of a legacy format to the nearer of the two."""
    top, smallest = format.smallest_normal / 2 - format.unit, format.smallest_normal
    hole = (rounded.abs() > top) & (rounded.abs() < smallest)
    nearer = (top + (smallest - top) * (x.abs() >= (top + smallest) / 2).to(x.dtype)).copysign(x)
    return torch.where(hole, nearer, rounded)


def INT(bits: int) -> Format:
    """Evenly spaced values, 2^(bits-1) - 1 of them positive."""
    return Format(bits, 1, "INT")


def POT(bits: int) -> Format:
    """Zero and signed powers of two, with 2 to 8 bits."""
    return Format(bits, bits - 1, "POT")


def FLOAT(bits: int, exponent_bits: int, *, legacy: bool = False) -> Format:
    """Floating point with subnormal values, without infinities and NaN."""
    return Format(bits, exponent_bits, "FLOAT", legacy)


OCP = {
    "FP8_E4M3": FLOAT(8, 4),
    "FP8_E5M2": FLOAT(8, 5),
    "FP6_E2M3": FLOAT(6, 2),
    "FP6_E3M2": FLOAT(6, 3),
    "FP4_E2M1": FLOAT(4, 2),
}
"""Names of the OCP formats. The codes that FP8 formats spend on infinity and NaN are larger values here."""

GRID: tuple[Format, ...] = (
    *(INT(bits) for bits in range(2, 17)),
    *(POT(bits) for bits in range(2, 9)),
    *(FLOAT(bits, exponent_bits) for bits in range(3, 9) for exponent_bits in range(1, bits - 1)),
)
"""The 43 formats of the study in a fixed order. Some have the same values as an earlier one (`Format.duplicate_of`)."""


def parse(name: "str | Format") -> Format:
    """The format of a name such as INT_8, POT_4, FLOAT_8_E4, UINT_8, UINT_8_Z12 or FP8_E4M3; a `Format` stays.

    A ValueError refuses an unknown name or an impossible number of bits.
    """
    if isinstance(name, Format):
        return name
    if name in OCP:
        return OCP[name]
    if match := re.fullmatch(r"UINT_(\d+)_Z(\d+)", name):
        return Format(int(match[1]), 1, "INT", signed=False, zero_point=int(match[2]))
    if match := re.fullmatch(r"(U?)(INT|POT)_(\d+)", name):
        bits, signed = int(match[3]), not match[1]
        return Format(bits, 1 if match[2] == "INT" else bits - signed, match[2], signed=signed)
    if match := re.fullmatch(r"(U?)FLOAT_(\d+)_E(\d+)(_LEGACY)?", name):
        return Format(int(match[2]), int(match[3]), "FLOAT", match[4] is not None, signed=not match[1])
    raise ValueError(did_you_mean("format", name, [*(format.name for format in GRID), *OCP]))
