"""Graphs without operations in place compute what the networks with them compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.testing import assert_close

from rqlib.core import layers
from rqlib.quantization import in_place


class Toy(nn.Module):
    def __init__(self, compute):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.same, self.compute = nn.Conv2d(3, 4, 3), nn.Identity(), compute
        self.silu, self.dropout = nn.SiLU(inplace=True), nn.Dropout(inplace=True)

    def forward(self, x):
        return self.compute(self, self.conv(x))


COMPUTATIONS = {
    "module": lambda toy, x: toy.silu(x) * 2 + x,
    "module that is called twice": lambda toy, x: toy.silu(x).exp() + toy.silu(toy.same(x)).exp() + x,
    "function with a flag": lambda toy, x: F.leaky_relu(x, 0.3, inplace=True) * 3 - x,
    "function": lambda toy, x: F.elu_(x) * 3 - x,
    "method": lambda toy, x: x.clamp_(-0.1, 0.2).exp() + x,
    "method with another tensor": lambda toy, x: x.add_(toy.same(x).exp(), alpha=2).exp() + x,
    "behind an identity": lambda toy, x: F.relu_(toy.same(toy.dropout(x))).exp() + x,
    "of a view of the same shape": lambda toy, x: x.view(x.shape).tanh_().exp() + x,
    "one after the other": lambda toy, x: toy.same(x.sub_(0.1)).relu_().mul_(3).exp() + x,
    "read before and after": lambda toy, x: x.exp() + x.sigmoid_() + x,
    "of one part of two": lambda toy, x: torch.cat([x.chunk(2, 1)[0].relu_(), x.chunk(2, 1)[1]], 1),
}


@pytest.mark.parametrize("compute", COMPUTATIONS.values(), ids=COMPUTATIONS)
def test_later_readers_see_the_result(compute):
    toy, x = Toy(compute).eval(), torch.randn(2, 3, 6, 6)
    toy.requires_grad_(False)
    expected = toy(x.clone())
    network = fx.GraphModule(toy, layers.trace(toy))
    in_place.remove(network, x)
    assert not any(in_place._is_in_place(network, node) for node in network.graph.nodes)
    before = x.clone()
    assert_close(network(x), expected, rtol=0, atol=0)
    assert torch.equal(x, before)
    seen = {}
    names = [name for name, _ in network.named_modules() if name in ("conv",)]
    with layers.watching(network, names, lambda name, _, output: seen.update({name: (output, output.clone())})):
        network(x)
    assert all(torch.equal(output, copy) for output, copy in seen.values()), "nothing is overwritten"


def test_a_network_without_such_operations_is_left_alone():
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    code = network.code
    in_place.remove(network, torch.zeros(1, 3, 4, 4))
    assert network.code == code


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda toy, x: x.copy_(x * 2) + x, "copy_"),
        (lambda toy, x: torch.add(x, 1, out=x) + x, "add"),
    ],
)
def test_errors(compute, name):
    toy = Toy(compute).eval()
    toy.requires_grad_(False)
    network = fx.GraphModule(toy, layers.trace(toy))
    words = rf"\({name}\) changes a tensor in place and has no other form .* weights alone \(activations=False\)"
    with pytest.raises(ValueError, match=words):
        in_place.remove(network, torch.zeros(1, 3, 4, 4))
