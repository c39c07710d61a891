"""Values on the grid, gradients straight through and masked, baked copies that leave the original whole."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib import observers, parametrizations, projections
from rqlib.formats import FLOAT, INT
from rqlib.parametrizations import Anchored, Masked, Quantized, Scored


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


@pytest.mark.parametrize("format", [INT(3), INT(8), FLOAT(8, 4)], ids=lambda format: format.name)
def test_the_largest_value_is_inside_its_own_range(format):
    for seed in range(100):
        x = torch.randn(50, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        scale = observers.scale(observers.observe(x[None], histogram=False), format)
        Quantized(format, scale)(x).sum().backward()
        assert x.grad.all()


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


def linear(step):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    parametrize.register_parametrization(layer, "weight", step(layer.weight))
    return layer


def test_masked_weights_are_0_and_have_no_gradient():
    mask = torch.arange(24).view(4, 6) % 3 == 0
    layer = linear(lambda weight: Masked(mask))
    stored = layer.parametrizations.weight.original
    assert torch.equal(layer.weight, stored * mask)
    layer(torch.randn(3, 6)).square().sum().backward()
    assert not stored.grad[~mask].any()
    assert stored.grad[mask].all()


def keep_eight(scores):
    return projections.largest(scores, 8)


def test_scores_choose_and_the_gradient_is_that_of_the_formula():
    torch.manual_seed(1)
    layer = linear(lambda weight: Scored(nn.Parameter(torch.randn(4, 6)), keep_eight))
    step, stored = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    mask = projections.largest(step.scores, 8)
    assert torch.equal(layer.weight, stored * mask)
    x, target = torch.randn(3, 6), torch.randn(3, 4)
    (layer(x) - target).square().sum().backward()
    effective = (stored * mask).detach().requires_grad_()
    (torch.nn.functional.linear(x, effective, layer.bias) - target).square().sum().backward()
    assert_close(step.scores.grad, effective.grad * stored * step.scores.sign())
    assert_close(stored.grad, effective.grad * mask)


def test_one_step_moves_the_scores_by_the_formula_and_nothing_else():
    layer = linear(lambda weight: Scored(nn.Parameter(weight.detach().clone()), keep_eight)).requires_grad_(False)
    step = layer.parametrizations.weight[0]
    step.scores.requires_grad_(True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(3, 6)
    layer(x).sum().backward()
    torch.optim.SGD([step.scores], lr=0.1).step()
    stored = layer.parametrizations.weight.original
    expected = before["parametrizations.weight.0.scores"] - 0.1 * x.sum(0) * stored * stored.sign()
    assert_close(step.scores.detach(), expected)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items() if "scores" not in name)


def test_scores_shared_by_rows():
    scores, rows = nn.Parameter(torch.tensor([3.0, 1.0, 2.0, 5.0])), torch.tensor([[3], [0], [1], [2]])
    layer = linear(lambda weight: Scored(scores, lambda s: projections.largest(s, 2), rows))
    assert layer.weight.any(1).tolist() == [True, True, False, False]
    assert layer.parametrizations.weight[0].mask().tolist() == [[True], [True], [False], [False]]
    (layer.weight * torch.arange(24.0).view(4, 6)).sum().backward()
    expected = (torch.arange(24.0).view(4, 6) * layer.parametrizations.weight.original).sum(1).detach()
    assert_close(scores.grad[rows.flatten()], expected)


def test_masks_and_formats_stack_where_0_is_a_level():
    mask = torch.rand(4, 6) > 0.5
    layer = linear(lambda weight: Masked(mask))
    parametrize.register_parametrization(layer, "weight", Quantized(INT(4), torch.tensor(0.1)), unsafe=True)
    assert not layer.weight[~mask].any()
    layer(torch.randn(3, 6)).sum().backward()
    assert not layer.parametrizations.weight.original.grad[~mask].any()
    baked = parametrizations.bake(nn.Sequential(layer))[0]
    assert type(baked) is nn.Linear
    assert torch.equal(baked.weight, layer.weight)
    assert parametrizations.steps_of(nn.Sequential(layer), Masked).keys() == {"0.weight"}


def test_baking_a_frozen_weight_with_trained_scores_makes_it_trainable():
    layer = linear(lambda weight: Scored(nn.Parameter(weight.detach().clone()), keep_eight))
    layer.parametrizations.weight.original.requires_grad_(False)
    assert parametrizations.bake(layer).weight.requires_grad
    assert parametrizations.bake(linear(lambda weight: Masked(weight > 0))).weight.requires_grad


def test_anchors_follow_the_rules_of_admm():
    x, mask = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([True, True, False])
    anchor = Anchored(x * mask, 0.1)
    assert torch.equal(anchor(x), x)
    assert_close(anchor.penalty(x), torch.tensor(0.05 * 0.25))
    moved = torch.tensor([2.0, -1.0, 1.0])
    anchor.update(moved, torch.tensor([True, False, True]), 1.3)
    assert anchor.nearest.tolist() == [2.0, 0.0, 1.0]
    assert anchor.dual.tolist() == [0.0, -1.0, 0.0]
    assert_close(anchor.rho, torch.tensor(0.13))
    assert_close(anchor.penalty(moved), torch.tensor(0.065 * 4.0))
