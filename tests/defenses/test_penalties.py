"""The spectral penalty of a training."""

import copy

import pytest
import torch

from rqlib import defenses
from rqlib.core import layers
from tests.networks import COLOR, narrow


def test_the_spectral_penalty_approaches_the_norms_of_folded_layers():
    model = narrow("SmallCNN")
    penalty = defenses.penalty("spectral", model, COLOR.shape)
    for _ in range(200):
        found = penalty(model)
    folded = layers.fold_batchnorm(model)
    norms = []
    shapes = {}
    names = [name for name, _ in layers.weighted_layers(folded)][:-1]
    with torch.no_grad(), layers.watching(folded, names, lambda name, x, _: shapes.setdefault(name, x[0].shape[1:])):
        folded(torch.zeros(1, *COLOR.shape))
    for name in names:
        norms.append(defenses.operator_norm(folded.get_submodule(name), tuple(shapes[name]), steps=60))
    assert found.item() == pytest.approx(sum(norm**2 for norm in norms) / len(norms), rel=1e-3)


def test_its_gradient_is_that_of_the_norm():
    """Of a linear layer: 2 sigma u v' / layers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double()
    penalty = defenses.penalty("spectral", model, (5,))
    for _ in range(300):
        value = penalty(model)
    (gradient,) = torch.autograd.grad(value, model[0].weight)
    u, s, v = torch.linalg.svd(model[0].weight)
    torch.testing.assert_close(gradient, 2 * s[0] * torch.outer(u[:, 0], v[0]), rtol=1e-4, atol=1e-6)


def test_it_starts_again_as_it_started_before():
    model = narrow("SmallCNN")
    one = defenses.penalty("spectral", model, COLOR.shape)
    first = [one(model).item() for _ in range(3)]
    one.restart()
    assert [one(model).item() for _ in range(3)] == first
    assert defenses.penalty("spectral", copy.deepcopy(model), COLOR.shape)(model).item() == first[0]


def test_two_penalties_are_added():
    model = narrow("SmallCNN")
    both = defenses.penalty("cosine+spectral", model, COLOR.shape)(model)
    single = [defenses.penalty(name, model, COLOR.shape)(model) for name in ("cosine", "spectral")]
    assert both.item() == pytest.approx(sum(value.item() for value in single))
    assert defenses.penalty("none", model, COLOR.shape) is None
