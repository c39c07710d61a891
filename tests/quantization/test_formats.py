"""Formats against ml_dtypes and brute force over all levels."""

import ml_dtypes
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rqlib.quantization import FLOAT, GRID, INT, POT, Format, formats

names = pytest.mark.parametrize("format", GRID, ids=lambda format: format.name)
UNSIGNED = [*dict.fromkeys(format.unsigned for format in GRID if format.unsigned != format)]
all_names = pytest.mark.parametrize("format", [*GRID, *UNSIGNED], ids=lambda format: format.name)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same(a, b):
    assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def normal_values(count=1_000_000, spread=6.0):
    """Values over many powers of two, of both signs, in and out of range."""
    rng = torch.Generator().manual_seed(0)
    exponents = torch.randn(count, generator=rng) * spread
    return torch.randn(count, generator=rng) * 2**exponents


def nearest_level(format, x):
    """Brute force: the nearest level in float64, ties to the even multiple of the step."""
    levels = format.levels.double()
    upper = torch.bucketize(x.double(), levels).clamp(1, len(levels) - 1)
    low, high = levels[upper - 1], levels[upper]
    x = x.double().clamp(levels[0], levels[-1])
    tie = torch.where(high / (high - low) % 2 == 0, high, low)
    return torch.where(x - low == high - x, tie, torch.where(x - low < high - x, low, high)).float()


def test_grid_is_the_43_formats_of_the_study():
    assert [sum(format.kind == kind for format in GRID) for kind in formats.KINDS] == [15, 7, 21]
    assert len({format.name for format in GRID}) == 43
    duplicates = [format.name for format in GRID if format.duplicate_of]
    assert duplicates == ["POT_2", *(f"FLOAT_{bits}_E1" for bits in range(3, 9))]


@names
def test_duplicates_are_exactly_the_formats_with_levels_seen_before(format):
    before = GRID[: GRID.index(format)]
    twins = [other.name for other in before if torch.equal(other.levels, format.levels)]
    assert twins == ([format.duplicate_of] if format.duplicate_of else [])
    assert formats.parse(format.name) == formats.parse(format) == format


@all_names
def test_levels_are_what_the_definition_says(format):
    e, m = format.exponent_bits, format.mantissa_bits
    exponents = range(2 - 2 ** (e - 1), 2 ** (e - 1) + 1)
    positive = {(1 + k / 2**m) * 2.0**x for x in exponents for k in range(2**m)}
    positive |= {k / 2**m * 2.0 ** exponents[0] for k in range(1, 2**m)}
    negative = {-level for level in positive} if format.signed else set()
    assert format.levels.tolist() == sorted({0.0} | positive | negative)
    assert len(format.levels) == 2**format.bits - format.signed
    assert format.levels[-1] == format.max
    assert format.levels[0] == format.min
    assert format.levels.dtype == torch.float32
    assert format.levels[format.levels > 0][0] == format.unit
    assert (format.levels / format.unit % 1 == 0).all()


@names
def test_the_unsigned_form_has_no_negative_values_and_more_positive_ones(format):
    unsigned = format.unsigned
    assert unsigned.bits == format.bits
    assert unsigned.unsigned == unsigned
    assert formats.parse(unsigned.name) == unsigned
    if format == POT(8):  # its powers of two already span float32
        assert unsigned == format
        return
    assert not unsigned.signed
    assert unsigned.name.startswith("U")
    positive, before = unsigned.levels[unsigned.levels > 0], format.levels[format.levels > 0]
    assert len(positive) == 2 * len(before) + 1
    if format.exponent_bits == 1:
        same(positive, unsigned.unit * torch.arange(1.0, 2**format.bits))
    elif format.mantissa_bits == 0:
        assert (positive[1:] == 2 * positive[:-1]).all()
    else:
        assert torch.isin(before, positive).all()
        assert unsigned.unit == format.unit / 2


@names
def test_formats_of_equal_values_have_unsigned_forms_of_equal_values(format):
    if format.duplicate_of:
        twin = formats.parse(format.duplicate_of)
        same(format.unsigned.levels, twin.unsigned.levels)
        assert format.unsigned.duplicate_of in (twin.unsigned.name, None)


def test_unsigned_names_and_values():
    assert [format.unsigned.name for format in (INT(8), POT(4), FLOAT(8, 4), POT(2), POT(8))] == [
        "UINT_8", "UPOT_4", "UFLOAT_8_E4", "UINT_2", "POT_8",
    ]  # fmt: skip
    assert (INT(2).unsigned.levels / INT(2).unsigned.unit).tolist() == [0, 1, 2, 3]
    assert POT(3).unsigned.levels.tolist() == [0, *(2.0**x for x in range(-2, 5))]
    assert FLOAT(3, 2).unsigned.levels.tolist() == POT(3).unsigned.levels.tolist()
    assert FLOAT(8, 3, legacy=True).unsigned.name == "UFLOAT_8_E3_LEGACY"
    assert INT(8).unsigned.max / INT(8).unsigned.unit == 255


def test_eight_unsigned_bits_round_as_torch_quantizes():
    x = torch.cat([normal_values(10_000, spread=1.0), torch.linspace(-1, 5, 10_001)])
    format = INT(8).unsigned
    same(format.round(x), torch.fake_quantize_per_tensor_affine(x, format.unit, 0, 0, 255))


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 12), (8, 128), (8, 254), (4, 3), (2, 1), (2, 2), (12, 700)])
def test_a_zero_point_rounds_as_torch_quantizes(bits, zero_point):
    form = INT(bits).with_zero_point(zero_point)
    assert form.name == f"UINT_{bits}_Z{zero_point}"
    assert formats.parse(form.name) == form
    assert (form.levels / form.unit).tolist() == list(range(-zero_point, 2**bits - zero_point))
    assert (form.min, form.max) == (form.levels[0], form.levels[-1])
    x = torch.cat([normal_values(10_000, spread=1.0), torch.linspace(-5, 5, 10_001)])
    same(form.round(x), torch.fake_quantize_per_tensor_affine(x, form.unit, zero_point, 0, 2**bits - 1))
    assert FLOAT(bits + 1, 1).with_zero_point(1) == INT(bits + 1).with_zero_point(1)
    assert form.unsigned == INT(bits).with_zero_point(0) == INT(bits).unsigned


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: INT(4).with_zero_point(15),
            r"UINT_4_Z15: the zero point must be 0\.\.14, so that one value is positive",
        ),
        (lambda: INT(4).with_zero_point(-1), r"the zero point must be 0\.\.14"),
        (lambda: POT(4).with_zero_point(1), "POT_4: only evenly spaced values have a zero point"),
        (lambda: FLOAT(8, 1, legacy=True).with_zero_point(1), "only evenly spaced values have a zero point"),
        (lambda: formats.Format(8, 1, "INT", zero_point=1), "INT_8_Z1: only an unsigned INT has a zero point"),
    ],
)
def test_impossible_zero_points_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@all_names
def test_every_level_is_fixed_and_others_go_to_the_nearest(format):
    same(format.round(format.levels), format.levels)
    x = normal_values(100_000, spread=2 ** (format.exponent_bits - 1) / 2)
    middles = (format.levels[1:] + format.levels[:-1]) / 2
    beside = [torch.nextafter(middles, torch.tensor(end)) for end in (9e9, -9e9)]
    for values in (x, middles, *beside):
        same(format.round(values), nearest_level(format, values))


OCP = {
    "FP8_E4M3": ml_dtypes.float8_e4m3fn,
    "FP8_E5M2": ml_dtypes.float8_e5m2,
    "FP6_E2M3": ml_dtypes.float6_e2m3fn,
    "FP6_E3M2": ml_dtypes.float6_e3m2fn,
    "FP4_E2M1": ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("name", OCP)
def test_agrees_with_ml_dtypes_on_every_code_and_a_million_values(name):
    """FP8 formats spend codes on infinity and NaN, which are larger values here; they agree in the range of both."""
    format, dtype = formats.parse(name), OCP[name]
    largest = float(ml_dtypes.finfo(dtype).max)
    codes = torch.from_numpy(numpy.arange(2**format.bits, dtype=numpy.uint8).view(dtype).astype(numpy.float32))
    assert set(codes[codes.isfinite()].tolist()) == set(format.levels[format.levels.abs() <= largest].tolist())
    x = torch.cat([normal_values(spread=2.0), torch.linspace(-40, 40, 100_001)])
    x = x[x.abs() <= largest] if format.max > largest else x
    same(format.round(x), torch.from_numpy(x.numpy().astype(dtype).astype(numpy.float32)) + 0.0)


@settings(deadline=None, max_examples=50)
@given(
    x=st.lists(finite, min_size=2, max_size=50),
    format=st.sampled_from([*GRID, *UNSIGNED, FLOAT(16, 7), FLOAT(8, 3, legacy=True)]),
)
def test_rounding_is_idempotent_odd_monotone_and_bounded(x, format):
    x = torch.tensor(x, dtype=torch.float32).sort().values
    y = format.round(x)
    same(format.round(y), y)
    if format.signed:
        same(format.round(-x), 0.0 - y)
    assert (y.diff() >= 0).all()
    assert ((y >= format.min) & (y <= format.max)).all()
    gaps = format.levels.diff().max() if format.bits <= 20 else torch.inf
    inside = (x >= format.min) & (x <= format.max)
    assert ((y - x).abs()[inside] <= gaps / 2).all()


@all_names
def test_other_types_follow_the_same_levels(format):
    x = normal_values(10_000)
    same(format.round(x.double()), format.round(x).double())
    narrow = x.bfloat16()
    same(format.round(narrow), format.round(narrow.float()).bfloat16())


def test_wide_formats_are_rounded_in_float64():
    x = torch.tensor([1.0 + 2**-29, 3.999999999], dtype=torch.float64)
    same(INT(32).round(x), (x / INT(32).unit).round() * INT(32).unit)


def test_infinity_saturates_nan_stays_and_no_zero_is_negative():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, -1e-30])
    for format in (INT(8), POT(4), FLOAT(8, 4), FLOAT(8, 4, legacy=True), INT(8).unsigned, INT(8).with_zero_point(9)):
        y = format.round(x)
        assert y[:2].tolist() == [format.max, format.min]
        assert y[2].isnan()
        assert not y[3:].any()
        assert not y[3:].signbit().any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_tensors_are_rounded_piece_by_piece_to_the_same_values(layout):
    x = (torch.randn(20, 64, 20, 20) * 100).contiguous(memory_format=layout)
    assert x.numel() > formats.rounding.BLOCK
    before = x.clone()
    y = FLOAT(8, 4).round(x)
    assert torch.equal(x, before)
    assert y.is_contiguous(memory_format=layout)
    same(y[7], FLOAT(8, 4).round(x[7]))
    same(FLOAT(8, 4).round(x.transpose(2, 3)), y.transpose(2, 3))
    same(FLOAT(8, 4).round(x[:, ::2]), y[:, ::2])
    same(FLOAT(8, 4).round(x[:1].expand(40, -1, -1, -1))[39], y[0])


@all_names
def test_compiled_loop_gives_the_same_values(format, compiler):
    x = torch.cat([normal_values(20_000), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])])
    same(format.round_compiled(x), format.round(x))


@pytest.fixture(scope="module")
def compiler():
    try:
        return INT(8).round_compiled(torch.ones(2, 3))
    except RuntimeError as error:
        pytest.skip(str(error))


def test_legacy_float_has_halved_subnormals_and_a_hole():
    legacy, right = FLOAT(8, 1, legacy=True), FLOAT(8, 1)
    small = legacy.levels[(legacy.levels > 0) & (legacy.levels < legacy.smallest_normal)]
    same(small, right.levels[(right.levels > 0) & (right.levels < right.smallest_normal)] / 2)
    same(legacy.levels[legacy.levels >= 2], right.levels[right.levels >= 2])
    gaps = legacy.levels[legacy.levels >= 0].diff()
    assert gaps.max() > 32 * gaps.min()  # the hole
    for format in (legacy, FLOAT(6, 2, legacy=True), FLOAT(8, 4, legacy=True)):
        x = torch.linspace(-2.1, 2.1, 100_003) * format.smallest_normal
        distance = (format.round(x)[:, None] - x[:, None]).abs()
        same(distance, (format.levels - x[:, None]).abs().amin(1, keepdim=True))
        assert set(format.round(x).tolist()) <= set(format.levels.tolist())


NAMES = {
    "FLOAT_8_E9": r"FLOAT_8_E9: exponent bits must be 1\.\.7",
    "FLOAT_16_E8": r"FLOAT_16_E8: exponent bits must be 1\.\.7",
    "FLOAT_4_E0": r"FLOAT_4_E0: exponent bits must be 1\.\.3",
    "INT_1": r"INT_1: bits must be 2\.\.32 \(a sign and at least one bit of value\)",
    "INT_64": r"INT_64: bits must be 2\.\.32",
    "POT_1": r"POT_1: bits must be 2\.\.32",
    "POT_9": r"POT_9: exponent bits must be 1\.\.7",
    "FLOAT_4_E3_LEGACY": r"FLOAT_4_E3_LEGACY: only a FLOAT with mantissa bits",
    "UPOT_8": r"UPOT_8: exponent bits must be 1\.\.7",
    "UFLOAT_4_E5": r"UFLOAT_4_E5: exponent bits must be 1\.\.4",
    "UFLOAT_4_E4_LEGACY": r"UFLOAT_4_E4_LEGACY: only a FLOAT with mantissa bits",
    "INT8": r"unknown format 'INT8' \(did you mean 'INT_8'\?\)",
    "banana": r"unknown format 'banana'; known: INT_2",
}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        *((lambda name=name: formats.parse(name), words) for name, words in NAMES.items()),
        (lambda: Format(8, 3, "INT"), "INT_8: exponent bits must be 1, got 3"),
        (lambda: Format(8, 3, "int"), "expected kind"),
        (lambda: INT(8).round(torch.arange(3)), r"INT_8: expected floating point values to round, got torch\.int64"),
        (lambda: INT(32).levels, r"INT_32 has 2\^32 values"),
        (lambda: INT(32).round_compiled(torch.ones(2)), "use Format.round"),
        (lambda: INT(8).round_compiled(torch.ones(2).double()), "use Format.round"),
        (lambda: FLOAT(8, 4, legacy=True).round_compiled(torch.ones(2)), "use Format.round"),
    ],
)
def test_errors(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
