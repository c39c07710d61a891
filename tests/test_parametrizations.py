"""Values on the grid, gradients straight through and masked, baked copies that leave the original whole."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib import parametrizations
from rqlib.formats import FLOAT, INT
from rqlib.parametrizations import Quantized


def quantized_layer(scale=0.1, format=None):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    format = format or INT(4)
    parametrize.register_parametrization(layer, "weight", Quantized(format, torch.tensor(scale)), unsafe=True)
    return layer


def test_values_are_levels_times_the_scale():
    x = torch.randn(1000)
    y = Quantized(FLOAT(8, 4), torch.tensor(0.01))(x)
    assert_close(FLOAT(8, 4).round(y / 0.01) * 0.01, y)
    expected = torch.fake_quantize_per_tensor_affine(x, 0.0625, 0, -7, 7)
    assert_close(Quantized(INT(4), torch.tensor(0.0625 / INT(4).unit))(x), expected, rtol=0, atol=0)


def test_one_scale_a_channel():
    x, scale = torch.randn(5, 3, 3), torch.rand(5, 1, 1) + 0.1
    y = Quantized(INT(8), scale)(x)
    for channel in range(5):
        assert torch.equal(y[channel], Quantized(INT(8), scale[channel])(x[channel]))


def test_gradient_passes_inside_the_range_and_is_zero_outside():
    limit = 0.1 * INT(4).max
    x = torch.tensor([0.0, 0.03, -limit, limit * 1.001, -5.0], requires_grad=True)
    (Quantized(INT(4), torch.tensor(0.1))(x) * torch.arange(1.0, 6.0)).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0]


def test_agrees_with_torch_fake_quantization_forward_and_backward():
    x = (torch.randn(1000) * 3).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    scale = 0.25
    weights = torch.randn(1000)
    (Quantized(INT(4), torch.tensor(scale / INT(4).unit))(x) * weights).sum().backward()
    (torch.fake_quantize_per_tensor_affine(twin, scale, 0, -7, 7) * weights).sum().backward()
    between = (x.abs() > 7 * scale) & (x.abs() < 7.5 * scale)  # torch masks by the rounded value, not by the value
    assert_close(x.grad[~between], twin.grad[~between])
    assert not x.grad[between].any()


def test_no_graph_is_kept_without_gradients():
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert not Quantized(INT(4), torch.tensor(0.1))(x).requires_grad


def test_works_in_a_stack_of_networks():
    scale = torch.tensor(0.1)
    x = torch.randn(4, 10)

    def loss(row):
        return (Quantized(INT(4), scale)(row) ** 2).sum()

    stacked = torch.func.vmap(torch.func.grad(loss))(x)
    assert_close(stacked, torch.stack([torch.func.grad(loss)(row) for row in x]))


def test_assigning_a_weight_works_and_writing_into_it_is_lost():
    layer = quantized_layer()
    wanted = torch.full_like(layer.weight, 0.1 * INT(4).unit)
    layer.weight = wanted
    assert_close(layer.weight, wanted)
    with torch.no_grad():
        layer.weight.zero_()
    assert_close(layer.weight, wanted)  # what is stored lies in .parametrizations.weight.original
    layer.parametrizations.weight.original.data.zero_()
    assert not layer.weight.any()


def test_training_moves_the_stored_weight_only():
    layer = quantized_layer()
    before = layer.parametrizations.weight.original.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, layer.parametrizations.weight.original)
    step = 0.1 * INT(4).unit
    assert_close(torch.round(layer.weight / step) * step, layer.weight)


def test_quantizer_is_found():
    layer = quantized_layer()
    assert parametrizations.quantizer(layer).format == INT(4)
    assert parametrizations.quantizer(layer, "bias") is None
    assert parametrizations.quantizer(nn.Conv2d(1, 1, 1)) is None
    assert "INT_4, 1 scale" in repr(layer)


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
