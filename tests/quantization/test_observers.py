"""Scales against quantiles and brute-force search over the values themselves."""

import pytest
import torch
from torch.testing import assert_close

from rqlib.quantization import FLOAT, INT, observers


def heavy_tailed(count=100_000):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=rng) * torch.rand(count, generator=rng).add(0.02) ** -0.5


def test_minmax_puts_the_largest_magnitude_on_the_largest_value():
    x = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    scale = observers.scale(observers.observe(x, histogram=False), INT(8), "minmax")
    assert_close(scale * INT(8).max, torch.tensor([3.0, 0.5]))


def test_percentile_leaves_one_in_ten_thousand_outside():
    x = heavy_tailed()
    limit = observers.scale(observers.observe(x[None]), INT(8), "percentile") * INT(8).max
    outside = (x.abs() > limit).float().mean().item()
    assert outside <= 1 - observers.PERCENTILE
    bin_width = x.abs().max() / observers.BINS
    assert_close(limit[0], x.abs().quantile(observers.PERCENTILE), rtol=0, atol=bin_width.item())


@pytest.mark.parametrize("format", [INT(2), INT(4), FLOAT(6, 2)], ids=lambda format: format.name)
def test_mse_is_the_least_error_of_all_candidates(format):
    x = heavy_tailed(20_000)

    def error(scale):
        return (format.round(x / scale) * scale - x).square().mean().item()

    scale = observers.scale(observers.observe(x[None]), format, "mse")
    best = min(error(x.abs().max() * t / format.max) for t in torch.linspace(0.01, 1, 100))
    assert error(scale) <= best * 1.02
    assert error(scale) < error(x.abs().max() / format.max)


def test_rows_have_scales_of_their_own():
    rows = torch.stack([heavy_tailed(5000), heavy_tailed(5000) * 100])
    for method in observers.METHODS:
        scale = observers.scale(observers.observe(rows), INT(4), method)
        assert_close(scale[1] / scale[0], torch.tensor(100.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", observers.METHODS)
def test_an_all_zero_tensor_has_a_scale(method):
    scale = observers.scale(observers.observe(torch.zeros(1, 10)), FLOAT(8, 4), method)
    assert scale > 0
    assert (FLOAT(8, 4).round(torch.zeros(3) / scale) * scale == 0).all()


def test_signals_that_are_never_negative_take_the_unsigned_form():
    negative, positive = (observers.observe(torch.tensor([[low, 1.0]])) for low in (-1e-30, 0.0))
    assert observers.fitting(negative, INT(8), "mse")[0] == INT(8)
    assert observers.fitting(positive, INT(8), "mse")[0] == INT(8).unsigned
    assert observers.fitting(positive, INT(8), "mse", "zero_point")[0] == INT(8).unsigned
    assert observers.fitting(positive, INT(8), "mse", "signed")[0] == INT(8)
    with pytest.raises(ValueError, match=r"expected nonnegative unsigned \| zero_point \| signed, got 'yes'"):
        observers.fitting(positive, INT(8), "mse", "yes")


def rounded(x, form, scale):
    return form.round(x / scale) * scale


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_zero_point_spends_no_more_codes_on_negative_values_than_they_need(bits):
    x = torch.nn.functional.silu(3 * heavy_tailed(20_000).clamp(-3, 3))
    observed = observers.observe(x[None])
    errors = {}
    for nonnegative in ("unsigned", "zero_point"):
        form, scale = observers.fitting(observed, INT(bits), "mse", nonnegative)
        errors[nonnegative] = (rounded(x, form, scale) - x).square().mean().sqrt().item()
    assert errors["zero_point"] < 0.65 * errors["unsigned"]  # nearly one more bit
    form, scale = observers.fitting(observed, INT(bits), "minmax", "zero_point")
    assert form.name.startswith(f"UINT_{bits}")
    step = scale * form.unit
    assert (rounded(x, form, scale) - x).abs().max() <= (0.5 + 0.5) * step  # an end moves by half a step at most
    assert_close(step[0] * (2**bits - 1), x.max() - x.min(), atol=0, rtol=1e-5)


def test_percentile_with_a_zero_point_clips_half_of_one_in_ten_thousand_on_each_side():
    x = heavy_tailed()
    x = torch.where(x > 0, 2 * x, x)
    form, scale = observers.fitting(observers.observe(x[None]), INT(8), "percentile", "zero_point")
    step = (scale * form.unit).item()
    for outside in (x < form.min * scale - step, x > form.max * scale + step):
        assert 0 < outside.float().mean() <= (1 - observers.PERCENTILE) / 2


@pytest.mark.parametrize("method", observers.METHODS)
@pytest.mark.parametrize("values", [[-1.0, -2.0], [-1e-30, 1.0], [-1.0, 1e-30], [-3.0, 3.0]])
def test_any_signal_has_a_zero_point(method, values):
    x = torch.tensor(values)
    form, scale = observers.fitting(observers.observe(x[None]), INT(4), method, "zero_point")
    assert (rounded(x, form, scale) - x).square().mean().sqrt() <= scale * form.unit
    assert rounded(torch.zeros(1), form, scale) == 0


def test_formats_that_are_not_evenly_spaced_have_no_zero_point():
    observed = observers.observe(torch.tensor([[-0.1, 1.0]]))
    assert observers.fitting(observed, FLOAT(8, 4), "mse", "zero_point")[0] == FLOAT(8, 4)
    assert observers.fitting(observed, FLOAT(4, 1), "mse", "zero_point")[0].kind == "INT"
