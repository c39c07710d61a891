"""Values on the grid, gradients straight through and masked, baked copies that leave the original whole."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib.quantization import FLOAT, INT, fake_quantize, observers
from rqlib.quantization.fake_quantize import Quantized


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
    assert fake_quantize.quantizer(layer).format == INT(4)
    assert fake_quantize.quantizer(layer, "bias") is None
    assert fake_quantize.quantizer(nn.Conv2d(1, 1, 1)) is None
    assert "INT_4, 1 scale" in repr(layer)
