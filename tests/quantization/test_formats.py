"""Formats against torch's float8, ml_dtypes, torch's fake quantization and brute force over all levels."""

import ml_dtypes
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rqlib.quantization import FLOAT, GRID, INT, POT, Format, formats

names = pytest.mark.parametrize("format", GRID, ids=lambda format: format.name)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same(a, b):
    assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def normal_values(count=1_000_000, spread=6.0):
    """Values over many binades, both signs, in and out of range."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randn(count, generator=generator) * spread
    return torch.randn(count, generator=generator) * 2**exponents


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
    assert [format.name for format in GRID[:2]] == ["INT_2", "INT_3"]
    assert GRID[-1].name == "FLOAT_8_E6"
    assert {format.name: format.duplicate_of for format in GRID if format.duplicate_of} == {
        "POT_2": "INT_2",
        **{f"FLOAT_{bits}_E1": f"INT_{bits}" for bits in range(3, 9)},
    }


@names
def test_duplicates_are_exactly_the_formats_with_levels_seen_before(format):
    before = GRID[: GRID.index(format)]
    twins = [other.name for other in before if torch.equal(other.levels, format.levels)]
    assert twins == ([format.duplicate_of] if format.duplicate_of else [])


@names
def test_names_round_trip(format):
    assert formats.parse(format.name) == format
    assert formats.parse(format) is format


@names
def test_levels_are_what_the_definition_says(format):
    e, m = format.exponent_bits, format.mantissa_bits
    exponents = range(2 - 2 ** (e - 1), 2 ** (e - 1) + 1)
    positive = {(1 + k / 2**m) * 2.0**x for x in exponents for k in range(2**m)}
    positive |= {k / 2**m * 2.0 ** exponents[0] for k in range(1, 2**m)}
    assert format.levels.tolist() == sorted({0.0} | positive | {-level for level in positive})
    assert len(format.levels) == 2**format.bits - 1
    assert format.levels[-1] == format.max
    assert format.levels.dtype == torch.float32
    assert format.levels[format.levels > 0][0] == format.unit
    assert (format.levels / format.unit % 1 == 0).all()


@names
def test_every_level_is_fixed_and_others_go_to_the_nearest(format):
    same(format.round(format.levels), format.levels)
    x = normal_values(100_000, spread=2 ** (format.exponent_bits - 1) / 2)
    middles = (format.levels[1:] + format.levels[:-1]) / 2
    for values in (
        x,
        middles,
        torch.nextafter(middles, torch.tensor(9e9)),
        torch.nextafter(middles, -torch.tensor(9e9)),
    ):
        same(format.round(values), nearest_level(format, values))


@pytest.mark.parametrize("bits", range(2, 17))
def test_int_is_float_with_one_exponent_bit_and_uniform(bits):
    same(FLOAT(bits, 1).levels, INT(bits).levels)
    half = 2 ** (bits - 1) - 1
    same(INT(bits).levels / INT(bits).unit, torch.arange(-half, half + 1).float())


@pytest.mark.parametrize("bits", range(2, 9))
def test_pot_is_float_without_mantissa(bits):
    same(FLOAT(bits, bits - 1).levels, POT(bits).levels)
    assert (POT(bits).levels[POT(bits).levels > 0].log2() % 1 == 0).all()


OCP = {
    "FP6_E2M3": ml_dtypes.float6_e2m3fn,
    "FP6_E3M2": ml_dtypes.float6_e3m2fn,
    "FP4_E2M1": ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("name", OCP)
def test_agrees_with_ml_dtypes_on_every_code_and_a_million_values(name):
    format, dtype = formats.parse(name), OCP[name]
    codes = numpy.arange(2**format.bits, dtype=numpy.uint8).view(dtype).astype(numpy.float32)
    assert set(codes.tolist()) == set(format.levels.tolist())
    x = torch.cat([normal_values(spread=2.0), torch.linspace(-40, 40, 100_001)])
    same(format.round(x), torch.from_numpy(x.numpy().astype(dtype).astype(numpy.float32)) + 0.0)


@pytest.mark.parametrize(("name", "dtype"), [("FP8_E4M3", torch.float8_e4m3fn), ("FP8_E5M2", torch.float8_e5m2)])
def test_agrees_with_torch_float8_in_range_on_every_code_and_a_million_values(name, dtype):
    format, largest = formats.parse(name), torch.finfo(dtype).max
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    codes = codes[codes.isfinite()]
    assert set(codes.tolist()) == {level for level in format.levels.tolist() if abs(level) <= largest}
    x = normal_values()
    x = x[x.abs() <= largest]
    same(format.round(x), x.to(dtype).float() + 0.0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
def test_agrees_with_torch_fake_quantization(bits):
    x, half = normal_values(), 2 ** (bits - 1) - 1
    scale = 2.0**-4  # a power of two, so that dividing and multiplying by it is exact
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 0, -half, half)
    same(INT(bits).round(x / scale * INT(bits).unit) / INT(bits).unit * scale, expected)


@settings(deadline=None, max_examples=50)
@given(
    x=st.lists(finite, min_size=2, max_size=50), format=st.sampled_from([*GRID, FLOAT(16, 7), FLOAT(8, 3, legacy=True)])
)
def test_rounding_is_idempotent_odd_monotone_and_bounded(x, format):
    x = torch.tensor(x, dtype=torch.float32).sort().values
    y = format.round(x)
    same(format.round(y), y)
    same(format.round(-x), 0.0 - y)
    assert (y.diff() >= 0).all()
    assert (y.abs() <= format.max).all()
    gaps = format.levels.diff().max() if format.bits <= 20 else torch.inf
    inside = x.abs() <= format.max
    assert ((y - x).abs()[inside] <= gaps / 2).all()


@names
def test_float64_follows_the_same_levels(format):
    x = normal_values(10_000).double()
    same(format.round(x).float(), format.round(x.float()))
    assert format.round(x).dtype == torch.float64


def test_narrow_floats_are_rounded_in_float32():
    x = normal_values(10_000).bfloat16()
    same(FLOAT(8, 4).round(x), FLOAT(8, 4).round(x.float()).bfloat16())


def test_infinity_saturates_nan_stays_and_no_zero_is_negative():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, -1e-30])
    for format in (INT(8), POT(4), FLOAT(8, 4), FLOAT(8, 4, legacy=True)):
        y = format.round(x)
        assert y[:2].tolist() == [format.max, -format.max]
        assert y[2].isnan()
        assert not y[3:].any()
        assert not FLOAT(8, 4).round(x)[3:].signbit().any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_tensors_are_rounded_piece_by_piece_to_the_same_values(layout):
    x = (torch.randn(20, 64, 20, 20) * 100).contiguous(memory_format=layout)
    assert x.numel() > formats.rounding.BLOCK
    y = FLOAT(8, 4).round(x)
    assert y.is_contiguous(memory_format=layout)
    same(y[7], FLOAT(8, 4).round(x[7]))
    same(FLOAT(8, 4).round(x.transpose(2, 3)), y.transpose(2, 3))
    same(FLOAT(8, 4).round(x[:, ::2]), y[:, ::2])
    same(FLOAT(8, 4).round(x[:1].expand(40, -1, -1, -1))[39], y[0])


def test_wide_formats_are_rounded_in_float64():
    x = torch.tensor([1.0 + 2**-29, 3.999999999], dtype=torch.float64)
    same(INT(32).round(x), (x / INT(32).unit).round() * INT(32).unit)
    with pytest.raises(ValueError, match="INT_32 has 2\\^32 values"):
        _ = INT(32).levels


@names
def test_compiled_loop_gives_the_same_values(format, compiler):
    x = torch.cat([normal_values(20_000), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])])
    same(format.round_compiled(x), format.round(x))


@pytest.fixture(scope="module")
def compiler():
    try:
        return INT(8).round_compiled(torch.ones(2, 3))
    except RuntimeError as error:
        pytest.skip(str(error))


def test_compiled_loop_refuses_what_it_cannot_do():
    for format, x in (
        (INT(32), torch.ones(2)),
        (INT(8), torch.ones(2).double()),
        (FLOAT(8, 4, legacy=True), torch.ones(2)),
    ):
        with pytest.raises(ValueError, match="use Format.round"):
            format.round_compiled(x)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FLOAT_8_E9", r"FLOAT_8_E9: exponent bits must be 1\.\.7"),
        ("FLOAT_16_E8", r"FLOAT_16_E8: exponent bits must be 1\.\.7"),
        ("FLOAT_4_E0", r"FLOAT_4_E0: exponent bits must be 1\.\.3"),
        ("INT_1", r"INT_1: bits must be 2\.\.32 \(a sign and at least one bit of value\)"),
        ("POT_1", r"POT_1: bits must be 2\.\.32"),
        ("POT_9", r"POT_9: exponent bits must be 1\.\.7"),
        ("INT_64", r"INT_64: bits must be"),
        ("FLOAT_4_E3_LEGACY", r"FLOAT_4_E3_LEGACY: only a FLOAT with mantissa bits"),
        ("INT8", r"unknown format 'INT8' \(did you mean 'INT_8'\?\)"),
        ("banana", r"unknown format 'banana'; known: INT_2"),
    ],
)
def test_impossible_formats_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        formats.parse(name)


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="INT_8: exponent bits must be 1, got 3"):
        Format(8, 3, "INT")
    with pytest.raises(ValueError, match="expected kind"):
        Format(8, 3, "int")
    with pytest.raises(TypeError, match=r"INT_8: expected floating point values to round, got torch\.int64"):
        INT(8).round(torch.arange(3))


def test_ocp_names():
    assert formats.parse("FP8_E4M3") == FLOAT(8, 4)
    assert (formats.FP6_E2M3.max, formats.FP6_E3M2.max, formats.FP4_E2M1.max) == (7.5, 28.0, 6.0)


def quantization_error(x, levels):
    return (x[:, None].double() - levels.double()).abs().amin(1).square().mean()


def test_codebook_is_a_fixed_point_with_a_pinned_zero():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    levels = formats.codebook(x, 4, iterations=10_000)
    assert len(levels) == 16
    assert (levels == 0).sum() == 1
    nearest = (x[:, None] - levels).abs().argmin(1)
    means = torch.stack([x[nearest == index].mean() for index in range(16)])
    assert_close(means[levels != 0], levels[levels != 0], rtol=1e-4, atol=1e-4)
    scale = x.abs().max() / INT(4).max
    assert quantization_error(x, levels) < quantization_error(x, INT(4).levels * scale) / 2
    same(levels, formats.codebook(x.flip(0).reshape(100, 200), 4, iterations=10_000))


def test_codebook_of_few_values_is_those_values():
    x = torch.tensor([1.0, 5.0, 1.0, -2.0])
    assert formats.codebook(x, 3).tolist() == [-2.0, 0.0, 1.0, 5.0]
    assert formats.codebook(torch.zeros(5), 2).tolist() == [0.0]


def test_codebook_moves_empty_clusters_to_far_values():
    x = torch.cat([torch.ones(1000), torch.ones(1000) * 1.0001, torch.tensor([50.0, -70.0, 90.0])])
    levels = formats.codebook(x, 3)
    assert quantization_error(x, levels) < 1e-8


@pytest.mark.parametrize("values", [torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, 1.0]), torch.empty(0)])
def test_codebook_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="expected finite values"):
        formats.codebook(values, 2)
    with pytest.raises(ValueError, match=r"bits must be 1\.\.16"):
        formats.codebook(torch.ones(3), 0)
