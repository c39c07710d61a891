"""Values on the grid, gradients straight through and masked, baked copies that leave the original whole."""

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib.core import parametrizations, projections
from rqlib.pruning.parametrizations import Anchored, Masked, Scored
from rqlib.quantization import INT
from rqlib.quantization.fake_quantize import Quantized


def linear(step):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    parametrize.register_parametrization(layer, "weight", step(layer.weight))
    return layer


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
    stored.requires_grad_(False)
    assert parametrizations.bake(layer).weight.requires_grad, "its scores can be trained"


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


def test_anchors_follow_the_rules_of_admm():
    x, mask = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([True, True, False])
    anchor = Anchored(x * mask, 0.1)
    assert torch.equal(anchor(x), x)
    assert_close(anchor.penalty(x), torch.tensor(0.05 * 0.25))
    moved = torch.tensor([2.0, -1.0, 1.0])
    anchor.update(moved, torch.tensor([True, False, True]).mul, 1.3)
    assert anchor.nearest.tolist() == [2.0, 0.0, 1.0]
    assert anchor.dual.tolist() == [0.0, -1.0, 0.0]
    assert_close(anchor.rho, torch.tensor(0.13))
    assert_close(anchor.penalty(moved), torch.tensor(0.065 * 4.0))
