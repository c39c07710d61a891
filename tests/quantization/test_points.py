"""Where signals are quantized: residual, inception, depthwise, pre-activation networks, and hand-made graphs."""

import pytest
import torch
from torch import nn

from rqlib.core import layers
from rqlib.quantization import points as quantization_points
from tests import quantized_networks


def points(model):
    x = quantized_networks.images(2).float() / 255
    folded = layers.fold_batchnorm(model)
    network = quantization_points.insert(folded, x)
    with torch.no_grad():
        assert torch.equal(network(x), folded(x)), "identities change nothing"
    return [name for name, _ in network.quantizers.named_children()]


def test_residual_network():
    found = points(quantized_networks.network("ResNet_18", width=0.25))
    assert found[:4] == ["truediv", "stem_activation", "stage1_0_body_0_activation", "stage1_0_body_1_conv"]
    assert "stage1_0_activation" in found  # the result of the addition, behind its ReLU
    assert {"stage2_0_shortcut_conv", "classifier_linear"} <= set(found)
    convolutions, additions, pool, image = 21, 8, 1, 1
    assert len(found) == convolutions + additions + pool + image


@pytest.mark.parametrize(
    ("name", "weighted", "others"),
    [("Inception_BN", 57, 9 + 1 + 1), ("MobileNetV2", 54, 10 + 1 + 1), ("VGG_16", 16, 1), ("AlexNet", 8, 1)],
)
def test_counts_of_the_families(name, weighted, others):
    """Weighted layers, and: concatenations or additions, the average pool, the image."""
    assert len(points(quantized_networks.network(name))) == weighted + others


def test_preactivation_is_quantized_where_convolutions_read_it():
    found = points(quantized_networks.network("WRN_16_8", width=0.1))
    assert {"group1_1_activate_relu", "group1_1_body_conv2", "add"} <= set(found)
    assert "add_1" not in found, "only a BatchNorm reads the last sum"
    assert "group1_1_activate_norm" not in found


class Toy(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm, self.linear, self.compute = nn.BatchNorm2d(3), nn.Linear(3, 2), compute

    def forward(self, x):
        return self.compute(self, x)


def functional_operations_and_shapes(toy, x):
    y = torch.relu(toy.norm(toy.a(x)))
    z = torch.cat((y, toy.b(y).relu()), 1)[:, :3]
    z = (z + y).relu()
    z = torch.nn.functional.avg_pool2d(toy.c(z).clamp(-1, 1), 2)
    return toy.linear(z.mean((2, 3)).view(x.size(0), x.shape[1] + 0))


def a_signal_read_twice(toy, x):
    y = toy.a(x)
    return toy.b(y.relu()) + toy.c(y)


def a_constant_and_a_parameter_added(toy, x):
    return toy.b((toy.a(x) + 1).sigmoid() + toy.a.bias[:, None, None])


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (functional_operations_and_shapes, "x relu relu_1 cat relu_2 c avg_pool2d mean linear"),
        (a_signal_read_twice, "x a b c add"),
        (a_constant_and_a_parameter_added, "x a add_1 b"),  # no sums of signals; b reads what is on no grid
    ],
)
def test_points_of_made_up_networks(compute, expected):
    assert points(Toy(compute).eval()) == expected.split()


def test_bounds_of_activations():
    network = nn.Sequential(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2, 3), nn.Sigmoid())
    graph = torch.fx.GraphModule(network, layers.trace(network))
    nodes = [node for node in graph.graph.nodes if node.op == "call_module"]
    bounds = [quantization_points.bounds(graph, node) for node in nodes]
    assert bounds == [(0, torch.inf), (0, 6), (-2, 3), None]
