"""Values on the grid, gradients straight through and masked, baked copies that leave the original whole."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib.core import parametrizations
from rqlib.quantization import INT
from rqlib.quantization.fake_quantize import Quantized


def quantized_layer(scale=0.1, format=None):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    format = format or INT(4)
    parametrize.register_parametrization(layer, "weight", Quantized(format, torch.tensor(scale)), unsafe=True)
    return layer


def test_baked_copies_hold_the_effective_weight_and_load_into_plain_networks():
    network = nn.Sequential(quantized_layer(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 5, 5)
    expected = network(x)
    baked = parametrizations.bake(network)
    assert type(baked[0]) is nn.Conv2d
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    plain.load_state_dict(baked.state_dict())
    assert torch.equal(plain(x), expected)
    assert torch.equal(baked(x), expected)


def test_baking_leaves_the_original_as_it_was():
    network = nn.Sequential(quantized_layer())
    other = copy.deepcopy(network)
    expected = network[0].weight.clone()
    parametrizations.bake(network)
    parametrizations.bake(network)
    for layer in (network[0], other[0]):
        assert parametrize.is_parametrized(layer, "weight")
        assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize("trainable", [True, False])
def test_baking_restores_requires_grad(trainable):
    layer = quantized_layer()
    layer.parametrizations.weight.original.requires_grad_(trainable)
    assert parametrizations.bake(layer).weight.requires_grad == trainable
    assert parametrizations.bake(layer).weight.is_leaf


class Shifted(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x + self.shift


def test_baking_makes_a_frozen_weight_trainable_again_if_what_it_depends_on_was():
    layer = nn.Linear(2, 2)
    expected = layer.weight.detach() + 1
    layer.weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", Shifted())
    baked = parametrizations.bake(layer)
    assert baked.weight.requires_grad
    assert_close(baked.weight.detach(), expected)
