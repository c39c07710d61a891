"""What is guaranteed lies above what was measured; a network without a bound is named."""

import functools

import pytest
import torch
from torch import nn

from rqlib import attacks, defenses, robustness
from rqlib.defenses import network_bounds
from rqlib.robustness import figures
from tests import robust_networks


@functools.cache
def networks() -> dict[str, nn.Module]:
    plain = robust_networks.trained(adversarial=False)
    return {"original": plain, "quantized": defenses.defend(plain, activation="DTReLU_4").eval()}


def test_bounds_are_above_the_ratios_and_radii_hold():
    x, y = robust_networks.images(20)
    table = robustness.stretched(networks(), x, y, sizes=(0.5,), steps=5)
    assert set(table.variant) == {"original", "quantized"}
    assert table.used.max() <= 1
    assert len(figures.bound_over_measured(table).data) == 4
    sure = robustness.guaranteed(networks(), x, y).set_index("variant")
    assert sure.offset["original"] == 0 < sure.offset["quantized"]
    assert sure.median_255["original"] == pytest.approx(255 * sure.median_radius["original"] / x[0].numel() ** 0.5)
    radii = defenses.certified_radius(networks()["original"], x, y)
    inside = (attacks.L2(1.0).steepest(torch.randn_like(x)) * 0.99 * radii.view(-1, 1, 1, 1)).float()
    changed = networks()["original"](x + inside).argmax(1) != y
    assert not (changed & (radii > 0)).any()


def test_norms_of_layers_are_ranges():
    table = robustness.norms_of_layers(networks(), tuple(robust_networks.images(1)[0].shape[1:]))
    assert list(table.columns) == ["original", "quantized"]
    for entry in table.original:
        estimate, bound = map(float, entry.split(" to "))
        assert 0.9 * bound <= 1.2 * estimate <= 1.2 * bound + 0.02


def test_a_bound_below_a_ratio_is_an_error(monkeypatch):
    x, y = robust_networks.images(4)
    exact = network_bounds.Bound.through
    monkeypatch.setattr(network_bounds.Bound, "through", lambda self, norm, jump=0.0: exact(self, norm / 20, jump))
    with pytest.raises(AssertionError, match="a bound lies below a measured ratio"):
        robustness.stretched({"original": networks()["original"]}, x, y, sizes=(0.5,), steps=2)


def test_a_network_without_a_bound_is_named_and_left_out():
    x, y = robust_networks.images(4)
    noisy = defenses.defend(networks()["original"], noise_std=0.1)
    with pytest.warns(UserWarning, match="no bound is known of: {'RSE': 'expected a network that draws no noise"):
        assert robustness.stretched({"RSE": noisy}, x, y).empty
    with pytest.warns(UserWarning, match="no bound is known of"):
        assert robustness.guaranteed({"RSE": noisy}, x, y).empty
