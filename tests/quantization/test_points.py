"""Where signals are quantized: residual, inception, depthwise, pre-activation networks, and hand-made graphs."""

import pytest
import torch
from torch import nn

from rqlib.core import layers
from rqlib.quantization import points as quantization_points
from tests import quantized_networks


def points(model, x=None):
    x = quantized_networks.images(2).float() / 255 if x is None else x
    folded = layers.fold_batchnorm(model)
    network = quantization_points.insert(folded, x)
    with torch.no_grad():
        assert torch.equal(network(x), folded(x)), "identities change nothing"
    return [name for name, _ in network.quantizers.named_children()]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm, self.linear, self.pool = nn.BatchNorm2d(3), nn.Linear(3, 2), nn.AdaptiveAvgPool2d(1)


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
    assert {"group1_1_activate_relu", "group1_1_body_conv2", "add_1"} <= set(found)
    assert "group1_1_activate_norm" not in found


def test_functional_operations_and_shapes():
    class Functional(Toy):
        def forward(self, x):
            y = torch.relu(self.norm(self.a(x)))
            z = torch.cat((y, self.b(y).relu()), 1)[:, :3]
            z = (z + y).relu()
            z = torch.nn.functional.avg_pool2d(self.c(z).clamp(-1, 1), 2)
            return self.linear(z.mean((2, 3)).view(x.size(0), x.shape[1] + 0))

    assert points(Functional().eval()) == ["x", "relu", "relu_1", "cat", "relu_2", "c", "avg_pool2d", "mean", "linear"]


def test_a_signal_read_twice_is_quantized_before_what_reads_it():
    class Twice(Toy):
        def forward(self, x):
            y = self.a(x)
            return self.b(y.relu()) + self.c(y)

    assert points(Twice().eval()) == ["x", "a", "b", "c", "add"]


def test_adding_a_constant_or_a_parameter_is_no_sum_of_signals():
    class Constant(Toy):
        def forward(self, x):
            return self.b((self.a(x) + 1).sigmoid() + self.a.bias[:, None, None])

    assert points(Constant().eval()) == ["x", "a", "add_1", "b"]  # b reads what is on no grid


def test_bounds_and_relus():
    network = nn.Sequential(
        nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1)
    )
    graph = torch.fx.GraphModule(network, layers.trace(network))
    nodes = [node for node in graph.graph.nodes if node.op == "call_module"]
    bounds = [quantization_points.bounds(graph, node) for node in nodes[:4]]
    assert bounds == [(0, torch.inf), (0, 6), (-2, 3), None]
    assert [quantization_points.is_relu(graph, node) for node in nodes] == [True, False, False, False, False, False]
    kinds = [quantization_points.kind(graph, node) for node in nodes]
    assert kinds == ["activation"] * 4 + ["keep", "weighted"]


def test_origin_looks_through_what_keeps_the_grid():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(900, 2)).eval()
    graph = quantization_points.insert(network, torch.rand(1, 3, 32, 32))
    linear = next(node for node in graph.graph.nodes if node.target == "4")
    assert quantization_points.origin(graph, linear.all_input_nodes[0]).target == "quantizers._1"


def test_what_cannot_be_traced_is_refused():
    class Branching(Toy):
        def forward(self, x):
            return self.a(x) if x.mean() > 0.5 else self.b(x)

    with pytest.raises(ValueError, match=r"torch.fx cannot trace Branching.*weights alone can still be changed"):
        quantization_points.insert(Branching(), torch.rand(1, 3, 8, 8))
