"""Forms and scales of signals, against what the format itself would lose."""

import pytest
import torch

from rqlib.quantization import FLOAT, INT, observers, signal_forms
from tests.quantization.test_observers import heavy_tailed


def test_signals_that_are_never_negative_take_the_unsigned_form():
    negative, positive = (observers.observe(torch.tensor([[low, 1.0]])) for low in (-1e-30, 0.0))
    assert signal_forms.fitting(negative, INT(8), "mse")[0] == INT(8)
    assert signal_forms.fitting(positive, INT(8), "mse")[0] == INT(8).unsigned
    assert signal_forms.fitting(positive, INT(8), "mse", "zero_point")[0] == INT(8).unsigned
    assert signal_forms.fitting(positive, INT(8), "mse", "signed")[0] == INT(8)
    with pytest.raises(ValueError, match=r"expected nonnegative unsigned \| zero_point \| signed, got 'yes'"):
        signal_forms.fitting(positive, INT(8), "mse", "yes")


def rounded(x, form, scale):
    return form.round(x / scale) * scale


SIGNALS = {
    "silu": lambda: torch.nn.functional.silu(3 * heavy_tailed(20_000).clamp(-3, 3)),
    "heavy tails": lambda: heavy_tailed(20_000),
    "mostly negative": lambda: -torch.nn.functional.silu(heavy_tailed(20_000)),
    "far below 0": lambda: -1 + 0.05 * torch.rand(20_000),
    "constant": lambda: -torch.ones(10),
    "two values": lambda: torch.tensor([-1.0, 1.0]),
    "hardtanh": lambda: (3 * heavy_tailed(20_000)).clamp(-1, 1),
    "a lower end": lambda: (3 * heavy_tailed(20_000)).clamp(-0.3, 1),
    "nearly never negative": lambda: torch.cat([torch.rand(20_000), torch.tensor([-1e-30])]),
    "nearly never positive": lambda: torch.tensor([-1.0, -0.5, 1e-30]),
    "tiny": lambda: 1e-9 * heavy_tailed(20_000),
}


def loss(x, bits, method, nonnegative):
    """Root of the mean-square error."""
    form, scale = signal_forms.fitting(observers.observe(x[None]), INT(bits), method, nonnegative)
    assert form.bits == bits
    return (rounded(x, form, scale) - x).square().mean().sqrt().item()


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_a_zero_point_is_no_worse_than_none(bits, name):
    x = SIGNALS[name]()
    exact = 1e-6 * x.abs().max().item()
    assert loss(x, bits, "mse", "zero_point") <= 1.01 * loss(x, bits, "mse", "unsigned") + exact


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_zero_point_gains_nearly_a_bit_behind_a_silu(bits):
    x = SIGNALS["silu"]()
    assert loss(x, bits, "mse", "zero_point") < 0.65 * loss(x, bits, "mse", "unsigned")


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_minmax_with_a_zero_point_clips_nothing(bits, name):
    x = SIGNALS[name]()
    form, scale = signal_forms.fitting(observers.observe(x[None]), INT(bits), "minmax", "zero_point")
    assert form.min * scale * (1 + 1e-6) <= x.min()
    assert x.max() <= form.max * scale * (1 + 1e-6)
    assert scale * form.unit <= (1 + 1e-6) * x.abs().max() / (2 ** (bits - 1) - 1), "no step is larger without"


def test_percentile_with_a_zero_point_clips_half_of_one_in_ten_thousand_on_each_side():
    x = heavy_tailed()
    x = torch.where(x > 0, 2 * x, x)
    form, scale = signal_forms.fitting(observers.observe(x[None]), INT(8), "percentile", "zero_point")
    step = (scale * form.unit).item()
    for outside in (x < form.min * scale - step, x > form.max * scale + step):
        assert 0 < outside.float().mean() <= (1 - observers.PERCENTILE) / 2


def test_formats_that_are_not_evenly_spaced_have_no_zero_point():
    observed = observers.observe(torch.tensor([[-0.1, 1.0]]))
    assert signal_forms.fitting(observed, FLOAT(8, 4), "mse", "zero_point")[0] == FLOAT(8, 4)
    assert signal_forms.fitting(observed, FLOAT(4, 1), "mse", "zero_point")[0].kind == "INT"
