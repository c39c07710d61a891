"""Number formats: INT, POT and FLOAT as one family, with one rounding formula.

With n bits, e exponent bits and m = n - 1 - e mantissa bits, the unscaled values are 0, the normals
``+-(1 + k / 2^m) 2^x`` for ``x = 2 - 2^(e-1) ... 2^(e-1)`` and the subnormals ``+-(k / 2^m) 2^(smallest x)``.
There is no infinity and no NaN code. e = 1 is the uniform grid (INT, up to the scale), m = 0 is zero and
the signed powers of two (POT). A tensor is scaled by ``max|x| / Q`` first, Q being the largest value.
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
    """A signed, symmetric number format; ``Format(8, 4)`` is FLOAT_8_E4.

    ``legacy=True`` gives FLOAT with subnormals half as large as they should be and a hole below the
    smallest normal: a known mistake, kept only for comparison.

    Raises:
        ValueError: too few or too many bits, or exponent bits outside 1 .. bits - 1.
    """

    bits: int
    exponent_bits: int
    kind: str = "FLOAT"
    legacy: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"expected kind {' | '.join(KINDS)}, got {self.kind!r}")
        if not 2 <= self.bits <= LARGEST_BITS:
            raise ValueError(f"{self.name}: bits must be 2..{LARGEST_BITS} (a sign and at least one bit of value)")
        largest = min(self.bits - 1, LARGEST_EXPONENT_BITS)
        if not 1 <= self.exponent_bits <= largest:
            raise ValueError(f"{self.name}: exponent bits must be 1..{largest}")
        expected = {"INT": 1, "POT": self.bits - 1}.get(self.kind, self.exponent_bits)
        if self.exponent_bits != expected:
            raise ValueError(f"{self.name}: exponent bits must be {expected}, got {self.exponent_bits}")
        if self.legacy and (self.kind != "FLOAT" or self.mantissa_bits == 0):
            raise ValueError(f"{self.name}: only a FLOAT with mantissa bits has subnormals, and so a legacy form")

    @property
    def name(self) -> str:
        """INT_8, POT_4, FLOAT_8_E4, FLOAT_8_E4_LEGACY."""
        exponent = f"_E{self.exponent_bits}" if self.kind == "FLOAT" else ""
        return f"{self.kind}_{self.bits}{exponent}{'_LEGACY' if self.legacy else ''}"

    @property
    def mantissa_bits(self) -> int:
        """m = n - 1 - e."""
        return self.bits - 1 - self.exponent_bits

    @property
    def significant_bits(self) -> int:
        """m + 1: a backend whose operands keep as many (TF32: 11, bfloat16: 8) holds every value exactly."""
        return self.mantissa_bits + 1

    @property
    def smallest_normal(self) -> float:
        """2^(2 - 2^(e-1))."""
        return 2.0 ** (2 - 2 ** (self.exponent_bits - 1))

    @property
    def max(self) -> float:
        """Q = (2 - 2^-m) 2^(2^(e-1)), the largest value."""
        return (2 - 2.0**-self.mantissa_bits) * 2.0**2 ** (self.exponent_bits - 1)

    @property
    def unit(self) -> float:
        """The smallest positive value, a power of two of which every value is a whole multiple."""
        return self.smallest_normal * 2.0**-self.mantissa_bits / (2 if self.legacy else 1)

    @property
    def duplicate_of(self) -> str | None:
        """Name of the INT (or POT) with the same values, None where this is the first of its values."""
        if self.kind == "INT" or self.legacy:
            return None
        if self.exponent_bits == 1:
            return INT(self.bits).name
        return POT(self.bits).name if self.kind == "FLOAT" and self.mantissa_bits == 0 else None

    @functools.cached_property
    def levels(self) -> Tensor:
        """All values, ascending; float32, which holds them exactly."""
        if self.bits > 20:
            raise ValueError(f"{self.name} has 2^{self.bits} values; they are listed up to 20 bits")
        fractions = torch.arange(2**self.mantissa_bits, dtype=torch.float64) / 2**self.mantissa_bits
        binades = self.smallest_normal * 2.0 ** torch.arange(2**self.exponent_bits - 1, dtype=torch.float64)
        subnormals = fractions[1:] * self.smallest_normal / (2 if self.legacy else 1)
        positive = torch.cat([subnormals, torch.outer(binades, 1 + fractions).flatten()])
        return torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive]).float()

    def round(self, x: Tensor) -> Tensor:
        """The value nearest to each element of x, ties to even, saturating at +-Q.

        ``step = max(2^floor(log2 |x|), smallest normal) 2^-m``, ``round_half_even(x / step) step``, clipped;
        a closed form on the bits of x (`rounding`), the same for every format.

        Args:
            x: any shape, in units of the format (already divided by the scale); float32 or float64;
                narrower floats are rounded in float32 and given back in their own type. Infinities
                saturate, NaN stays NaN, and no zero is negative. No gradient flows.
        """
        if not x.is_floating_point():
            raise TypeError(f"{self.name}: expected floating point values to round, got {x.dtype}")
        wide = x.detach().to(torch.float64 if x.dtype == torch.float64 or self.mantissa_bits > 21 else torch.float32)
        rounded = rounding.clipped(wide, self.max, self.smallest_normal / (2 if self.legacy else 1), self.mantissa_bits)
        return (_out_of_the_hole(self, wide, rounded) if self.legacy else rounded).to(x.dtype)

    def round_compiled(self, x: Tensor) -> Tensor:
        """`round` of a float32 tensor as one compiled loop; the same values (`rounding.clipped_compiled`).

        Raises:
            ValueError: x is not float32, or the format is legacy or too fine for float32.
            RuntimeError: torch.compile does not work on this machine.
        """
        if x.dtype != torch.float32 or self.legacy or self.mantissa_bits > 21:
            raise ValueError(f"{self.name} of {x.dtype}: the compiled loop is for float32; use Format.round")
        return rounding.clipped_compiled(x, self.max, self.smallest_normal, self.mantissa_bits)


def _out_of_the_hole(format: Format, x: Tensor, rounded: Tensor) -> Tensor:
    """A legacy format has no value between its largest subnormal and its smallest normal: take the nearer one."""
    top, smallest = format.smallest_normal / 2 - format.unit, format.smallest_normal
    hole = (rounded.abs() > top) & (rounded.abs() < smallest)
    nearer = (top + (smallest - top) * (x.abs() >= (top + smallest) / 2).to(x.dtype)).copysign(x)
    return torch.where(hole, nearer, rounded)


def INT(bits: int) -> Format:
    """The uniform grid of 2^(bits-1) - 1 positive values."""
    return Format(bits, 1, "INT")


def POT(bits: int) -> Format:
    """Zero and signed powers of two; 2 to 8 bits."""
    return Format(bits, bits - 1, "POT")


def FLOAT(bits: int, exponent_bits: int, *, legacy: bool = False) -> Format:
    """Floating point with subnormals, without infinities and NaN."""
    return Format(bits, exponent_bits, "FLOAT", legacy)


FP8_E4M3 = FLOAT(8, 4)
"""float8_e4m3fn without its NaN: the same values up to 448, and 480 in the place of NaN."""
FP8_E5M2 = FLOAT(8, 5)
"""float8_e5m2 without its infinities: the same values up to 57344, and one more binade."""
FP6_E2M3, FP6_E3M2, FP4_E2M1 = FLOAT(6, 2), FLOAT(6, 3), FLOAT(4, 2)
"""The OCP microscaling element types, value for value."""

OCP = {
    "FP8_E4M3": FP8_E4M3,
    "FP8_E5M2": FP8_E5M2,
    "FP6_E2M3": FP6_E2M3,
    "FP6_E3M2": FP6_E3M2,
    "FP4_E2M1": FP4_E2M1,
}

GRID: tuple[Format, ...] = (
    *(INT(bits) for bits in range(2, 17)),
    *(POT(bits) for bits in range(2, 9)),
    *(FLOAT(bits, exponent_bits) for bits in range(3, 9) for exponent_bits in range(1, bits - 1)),
)
"""The 43 formats of the study, in a fixed order; `Format.duplicate_of` marks those of equal values."""


def parse(name: "str | Format") -> Format:
    """The format of a name: INT_8, POT_4, FLOAT_8_E4, FLOAT_8_E4_LEGACY, FP8_E4M3; a Format is given back.

    Raises:
        ValueError: unknown name, or a format that cannot be.
    """
    if isinstance(name, Format):
        return name
    if name in OCP:
        return OCP[name]
    if match := re.fullmatch(r"(INT|POT)_(\d+)", name):
        return {"INT": INT, "POT": POT}[match[1]](int(match[2]))
    if match := re.fullmatch(r"FLOAT_(\d+)_E(\d+)(_LEGACY)?", name):
        return FLOAT(int(match[1]), int(match[2]), legacy=match[3] is not None)
    raise ValueError(did_you_mean("format", name, [*(format.name for format in GRID), *OCP]))


def codebook(values: Tensor, bits: int, *, iterations: int = 100) -> Tensor:
    """A nonuniform set of levels fitted to values: Lloyd's k-means with one center pinned at 0.

    It starts from quantiles and takes no random number, so the same values give the same levels; a center
    that no value is nearest to moves to the value farthest from its own center.

    Args:
        values: any shape, finite.
        bits: 2^bits levels, 0 among them (fewer where there are fewer distinct values).

    Returns:
        Levels, ascending, float32.

    Source: S. P. Lloyd, Least squares quantization in PCM, 1982.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"codebook: bits must be 1..16, got {bits}")
    x = values.detach().double().flatten().sort().values
    if not x.isfinite().all() or not len(x):
        raise ValueError("codebook: expected finite values, got NaN, infinity or none at all")
    distinct = x[x != 0].unique()
    if len(distinct) < 2**bits:
        return torch.cat([distinct, distinct.new_zeros(1)]).sort().values.float()
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    quantiles = (torch.arange(2**bits - 1, dtype=torch.float64) + 0.5) / (2**bits - 1)
    centers = x[(quantiles * len(x)).long()]
    for _ in range(iterations):
        previous, centers = centers, _lloyd_step(x, sums, centers)
        if torch.equal(previous, centers):
            break
    return torch.cat([centers, centers.new_zeros(1)]).sort().values.float()


def _lloyd_step(x: Tensor, sums: Tensor, centers: Tensor) -> Tensor:
    """Each center to the mean of the values nearest to it; 0 is a center too, and stays."""
    levels, _ = torch.cat([centers, centers.new_zeros(1)]).sort()
    edges = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
    edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(x))])
    counts = edges.diff()
    means = (sums[edges[1:]] - sums[edges[:-1]]) / counts.clamp(min=1)
    zero = int((levels == 0).nonzero()[0])
    empty = (counts == 0).nonzero().flatten().tolist()
    distances = (x - levels.repeat_interleave(counts)).abs() if empty else x
    for index, worst in zip(empty, distances.argsort(descending=True).tolist(), strict=False):
        means[index] = x[worst]
    return torch.cat([means[:zero], means[zero + 1 :]])
