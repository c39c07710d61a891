"""Baked copies are plain and compute the same; the original stays as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from rqlib.core import parametrizations


class Rounded(nn.Module):
    def forward(self, x):
        return x + (x.round(decimals=1) - x).detach()


class Shifted(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x + self.shift


def rounded_layer() -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    parametrize.register_parametrization(layer, "weight", Rounded(), unsafe=True)
    return layer


def test_baked_copies_hold_the_effective_weight_and_load_into_plain_networks():
    network = nn.Sequential(rounded_layer(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 5, 5)
    expected = network(x)
    baked = parametrizations.bake(network)
    assert type(baked[0]) is nn.Conv2d
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    plain.load_state_dict(baked.state_dict())
    assert torch.equal(plain(x), expected)
    assert torch.equal(baked(x), expected)


def test_baking_leaves_the_original_as_it_was():
    network = nn.Sequential(rounded_layer())
    other = copy.deepcopy(network)
    expected = network[0].weight.clone()
    parametrizations.bake(network)
    parametrizations.bake(network)
    for layer in (network[0], other[0]):
        assert parametrize.is_parametrized(layer, "weight")
        assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize(
    ("frozen", "step", "trainable"), [(False, Rounded, True), (True, Rounded, False), (True, Shifted, True)]
)
def test_a_baked_weight_is_trainable_if_anything_it_was_computed_from_is(frozen, step, trainable):
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(not frozen)
    parametrize.register_parametrization(layer, "weight", step(), unsafe=True)
    baked = parametrizations.bake(layer)
    assert baked.weight.requires_grad == trainable
    assert baked.weight.is_leaf
    assert torch.equal(baked.weight, layer.weight)


def test_parametrizations_are_found_by_kind_and_named_by_their_tensor():
    network = nn.Sequential(rounded_layer(), nn.Conv2d(4, 2, 1))
    parametrize.register_parametrization(network[1], "bias", Shifted())
    found = parametrizations.steps_of(network, Rounded)
    assert found == {"0.weight": network[0].parametrizations.weight[0]}
    assert [*parametrizations.steps_of(network, nn.Module)] == ["0.weight", "1.bias"]
    assert [*parametrizations.steps_of(network[0], Rounded)] == ["weight"]
