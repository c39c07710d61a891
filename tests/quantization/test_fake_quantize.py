"""Values on the grid, gradients straight through inside its range and 0 outside."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib.quantization import FLOAT, INT, observers
from rqlib.quantization.fake_quantize import Quantized


@pytest.mark.parametrize("format", [INT(3), INT(8), FLOAT(8, 4)], ids=lambda format: format.name)
def test_the_largest_value_is_inside_its_own_range(format):
    for seed in range(100):
        x = torch.randn(50, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        scale = observers.scale(observers.observe(x[None], histogram=False), format, "minmax")
        Quantized(format, scale)(x).sum().backward()
        assert x.grad.all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
def test_agrees_with_torch_fake_quantization_forward_and_backward(bits):
    largest, scale = 2 ** (bits - 1) - 1, 0.25
    x = (torch.randn(1000) * scale * largest / 2).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    weights = torch.randn(1000)
    quantized = Quantized(INT(bits), torch.tensor(scale / INT(bits).unit))(x)
    expected = torch.fake_quantize_per_tensor_affine(twin, scale, 0, -largest, largest)
    (quantized * weights).sum().backward()
    (expected * weights).sum().backward()
    edge = x.abs() / scale - largest
    between = (edge > 0) & (edge < 0.5)  # torch masks by the rounded value, not by the value
    assert_close(quantized, expected, rtol=0, atol=0)
    assert_close(x.grad[~between], twin.grad[~between])
    assert not x.grad[between].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_a_sign_it_agrees_with_torch_and_lets_gradients_pass_from_0_to_the_limit(bits):
    format, scale = INT(bits).unsigned, 0.25
    largest = 2**bits - 1
    x = torch.cat([torch.zeros(1), torch.tensor([largest * scale]), torch.randn(1000) * scale * largest / 2])
    x.requires_grad_()
    expected = torch.fake_quantize_per_tensor_affine(x.detach(), scale, 0, 0, largest)
    point = Quantized(format, torch.tensor(scale / format.unit))
    quantized = point(x)
    assert_close(quantized, expected, rtol=0, atol=0)
    quantized.sum().backward()
    assert torch.equal(x.grad.bool(), (x >= 0) & (x <= largest * scale * (1 + 1e-6)))
    point.masked = False
    x.grad = None
    point(x).sum().backward()
    assert x.grad.all()


def test_works_in_a_stack_of_networks():
    scale = torch.tensor(0.1)
    x = torch.randn(4, 10)

    def loss(row):
        return (Quantized(INT(4), scale)(row) ** 2).sum()

    stacked = torch.func.vmap(torch.func.grad(loss))(x)
    assert_close(stacked, torch.stack([torch.func.grad(loss)(row) for row in x]))


def test_assigning_a_weight_works_and_writing_into_it_is_lost():
    layer = nn.Conv2d(3, 4, 3)
    parametrize.register_parametrization(layer, "weight", Quantized(INT(4), torch.tensor(0.1)), unsafe=True)
    wanted = torch.full_like(layer.weight, 0.1 * INT(4).unit)
    layer.weight = wanted
    assert_close(layer.weight, wanted)
    with torch.no_grad():
        layer.weight.zero_()
    assert_close(layer.weight, wanted)  # what is stored lies in .parametrizations.weight.original
    layer.parametrizations.weight.original.data.zero_()
    assert not layer.weight.any()


def test_no_graph_is_kept_without_gradients():
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert not Quantized(INT(4), torch.tensor(0.1))(x).requires_grad


@pytest.mark.parametrize("format", [INT(4), INT(4).unsigned, INT(6).with_zero_point(9), FLOAT(6, 3)], ids=str)
def test_gradients_of_one_scale_are_those_of_as_many_equal_scales(format):
    x = torch.cat([torch.zeros(4, 1), 3 * torch.randn(4, 500)], dim=1)
    gradients = []
    for scale in (torch.full((1,), 0.3), torch.full((4, 1), 0.3)):
        leaf = x.clone().requires_grad_()
        (Quantized(format, scale)(leaf) * x).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert 0 < (gradients[0] != 0).sum() < x.numel()


def test_gradients_of_gradients_pass_through():
    point, x = Quantized(INT(4), torch.tensor([0.1])), torch.tensor([0.1, 9.0], requires_grad=True)
    (slope,) = torch.autograd.grad(point(x * x).sum(), x, create_graph=True)
    assert_close(torch.autograd.grad(slope.sum(), x)[0], torch.tensor([2.0, 0.0]))
