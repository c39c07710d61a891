"""Measured ratios against exact norms, and below every bound."""

import pytest
import torch
from torch import nn

from rqlib import quantization
from rqlib.defenses import DDTReLU, DTReLU, spectra
from rqlib.defenses.measured_ratios import COLUMNS, jacobian_norms, ratios
from tests.networks import COLOR, narrow

IMAGES, LABELS = torch.rand(12, *COLOR.shape, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10


def learned_levels(make) -> nn.Module:
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 6, 3, 2), make(3), nn.Conv2d(6, 6, 3, 2), make(3), nn.Flatten(), nn.Linear(6 * 49, 10))
    network = nn.Sequential(*parts)
    network(IMAGES)
    return network.eval()


def quantized(format: str) -> nn.Module:
    return quantization.ptq(narrow("SmallCNN"), format, (255 * IMAGES).byte())


@pytest.mark.parametrize(
    "make",
    [
        lambda: narrow("SmallCNN"),
        lambda: narrow("ResNet_18"),
        lambda: quantized("INT_4"),
        lambda: quantized("FLOAT_6_E2"),
        lambda: learned_levels(DTReLU),
        lambda: learned_levels(DDTReLU),
    ],
    ids=["SmallCNN", "ResNet_18", "INT_4", "FLOAT_6_E2", "DTReLU", "DDTReLU"],
)
def test_no_measured_ratio_exceeds_its_bound(make):
    rows = ratios(make(), IMAGES, LABELS, sizes=(0.01, 1.0), steps=5)
    assert list(rows.columns) == COLUMNS
    assert (rows.used <= 1 + 1e-4).all(), rows[rows.used > 1]
    assert (rows.percentile_99 <= rows.largest).all()
    pgd, random = (rows[(rows.name == "logits") & (rows.perturbation == kind)] for kind in ("pgd", "random"))
    assert pgd.largest.max() > random.largest.max()


def test_only_networks_that_round_nothing_have_a_jacobian():
    assert "jacobian" in set(ratios(narrow("SmallCNN"), IMAGES, LABELS, sizes=(1.0,), steps=1).perturbation)
    assert "jacobian" not in set(ratios(quantized("INT_8"), IMAGES, LABELS, sizes=(1.0,), steps=1).perturbation)


def test_a_bound_that_is_too_low_is_caught(monkeypatch):
    """A layer whose norm is taken a tenth too small: the Jacobian of a linear network shows it, and so does PGD."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    assert (ratios(network, IMAGES, LABELS).used <= 1).all()
    right = spectra.norm_bound
    monkeypatch.setattr(spectra, "norm_bound", lambda *args: 0.9 * right(*args))
    rows = ratios(network, IMAGES, LABELS).set_index("perturbation")
    assert rows.used["jacobian"] == pytest.approx(1 / 0.9, rel=0.02)


def test_the_norm_of_the_jacobian_is_that_of_the_explicit_matrix():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)).double().eval()
    x = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    exact = [torch.autograd.functional.jacobian(network, one[None]).view(5, 12) for one in x]
    expected = torch.stack([torch.linalg.matrix_norm(one, 2) for one in exact])
    found = jacobian_norms(network, x, steps=200)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (jacobian_norms(network, x, steps=2) <= expected + 1e-12).all()


def test_a_linear_layer_stretches_its_first_singular_vector_by_its_norm():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval()
    network[1].weight.data, network[1].bias.data = torch.tensor([[3.0, 0, 0], [0, 0, 0]]), torch.tensor([5.0, 0])
    x = torch.tensor([0.4, 0.5, 0.5]).view(1, 3, 1, 1)
    rows = ratios(network, x, torch.tensor([1]), sizes=(0.3,), steps=30).set_index("perturbation")
    assert rows[rows.name == "logits"].largest["pgd"] == pytest.approx(3, rel=0.05)
    assert rows[rows.name == "logits"].largest["random"] < 3
