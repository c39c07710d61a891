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
