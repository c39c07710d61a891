"""The points of a network where its signals are quantized, found on its graph (torch.fx).

A signal is quantized after each convolution, linear layer, average pool, sum and concatenation. If an activation
function or a BatchNorm that could not be folded follows and is the only reader, the point lies after it: in the order
convolution, ReLU, BatchNorm there is one rounding, at the end. A signal is also quantized wherever a convolution or
linear layer would otherwise read values that are not quantized: the normalized image, the output of a BatchNorm whose
input has other readers, and the output of an operation that is not listed here.

One rounding behind a BatchNorm was measured against one on both sides of it, with 2,000 test images of CIFAR-10 (JPEG),
on a network of the order above and on DenseNet-121, whose BatchNorms follow concatenations. INT_8 differed by at most
0.25 points; INT_6 won 0.3 to 0.9 points; INT_4 won 12.5 and 1.1 points with a scale per tensor, 4.8 and 2.0 with one
per channel.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from rqlib.core import layers
from rqlib.defenses.activations import FEW_LEVELS
from rqlib.quantization import in_place

ACTIVATION = "activation"  # belongs to the operation before it
AVERAGE, SUM, CONCAT, WEIGHTED = "average", "sum", "concat", "weighted"  # their results are quantized
NORMALIZATION = "normalization"  # a BatchNorm that could not be folded belongs to the operation before it, too
KEEP = "keep"  # moves values or selects among them, so quantized values stay quantized
OTHER = "other"
QUANTIZED = (WEIGHTED, AVERAGE, SUM, CONCAT)

_POOLS = ("AvgPool1d", "AvgPool2d", "AvgPool3d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d")
_MODULES = {
    WEIGHTED: layers.WEIGHTED,
    NORMALIZATION: layers.NORMALIZATIONS,
    AVERAGE: tuple(getattr(nn, name) for name in _POOLS),
    ACTIVATION: (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid)
    + (nn.SiLU, nn.GELU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, *FEW_LEVELS),
    KEEP: (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    + (nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ChannelShuffle, nn.PixelShuffle),
}
_FUNCTIONS = {
    AVERAGE: (torch.mean, F.avg_pool2d, F.adaptive_avg_pool2d, F.avg_pool1d, F.adaptive_avg_pool1d),
    SUM: (torch.add, operator.add),
    CONCAT: (torch.cat, torch.concat),
    ACTIVATION: (torch.relu, F.relu, F.relu6, F.leaky_relu, F.elu, F.hardtanh, F.hardswish, F.hardsigmoid)
    + (F.silu, F.gelu, F.mish, torch.sigmoid, torch.tanh, F.softplus),
    KEEP: (torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.chunk)
    + (torch.split, operator.getitem, F.dropout, F.max_pool2d, F.adaptive_max_pool2d),
}
_METHODS = {
    AVERAGE: ("mean",),
    SUM: ("add",),
    ACTIVATION: ("relu", "sigmoid", "tanh"),
    KEEP: ("flatten", "view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "chunk")
    + ("split",),
}
RELUS = (nn.ReLU, torch.relu, F.relu, "relu")


def insert(model: nn.Module, sample: Tensor) -> fx.GraphModule:
    """The graph of a network in eval mode, with an identity module ``quantizers.NAME`` at every point.

    The result shares its layers with the network, and none of its operations works in place (`in_place.remove`, which
    changes the layers). The network runs on the sample, a batch of images, to learn which values of the graph are
    tensors.

    Raises:
        ValueError: torch.fx cannot trace the network, or an operation works in place and has no other form.
    """
    network = fx.GraphModule(model, layers.trace(model), type(model).__name__)
    in_place.remove(network, sample)
    with torch.no_grad():
        ShapeProp(network).propagate(sample)  # notes which values are tensors
    sources = {_last_of_chain(network, node) for node in network.graph.nodes if kind(network, node) in QUANTIZED}
    sources |= {
        node.all_input_nodes[0]
        for node in network.graph.nodes
        if kind(network, node) == WEIGHTED and not _is_quantized(network, node.all_input_nodes[0], sources)
    }
    for node in [node for node in network.graph.nodes if node in sources and _is_float_tensor(node)]:
        network.add_submodule(f"quantizers.{node.name}", nn.Identity())
        with network.graph.inserting_after(node):
            point = network.graph.call_module(f"quantizers.{node.name}", (node,))
        node.replace_all_uses_with(point)
        point.args = (node,)
    network.recompile()
    return network


def kind(network: fx.GraphModule, node: fx.Node) -> str:
    """What kind of operation a node is: one of the words above."""
    if node.op == "call_module":
        module = network.get_submodule(node.target)
        found = next((name for name, types in _MODULES.items() if isinstance(module, types)), OTHER)
        return OTHER if found == NORMALIZATION and not layers.is_batchnorm(module) else found
    table = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
    found = next((name for name, targets in table.items() if node.target in targets), OTHER)
    signals = [source for source in node.all_input_nodes if source.op != "get_attr"]  # no parameters or constants
    return OTHER if found == SUM and len(signals) < 2 else found


def is_identity(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation returns its input unchanged: the rest of a folded BatchNorm, or dropout in eval mode."""
    return node.op == "call_module" and isinstance(network.get_submodule(node.target), nn.Identity | nn.Dropout)


def is_shape(node: fx.Node) -> bool:
    """Whether an operation asks for the shape of a signal, not for its values."""
    return node.target in (getattr, "size", "dim")


def bounds(network: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """(lowest, highest) value of an activation that only clips: ReLU, ReLU6, hardtanh. None for any other."""
    module = network.get_submodule(node.target) if node.op == "call_module" else None
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val, module.max_val
    return (0.0, torch.inf) if is_relu(network, node) else None


def is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation is max(x, 0)."""
    if node.op == "call_module":
        return isinstance(network.get_submodule(node.target), nn.ReLU)
    return node.target in RELUS


def _is_float_tensor(node: fx.Node) -> bool:
    found = node.meta.get("tensor_meta")
    return isinstance(found, TensorMetadata) and found.dtype.is_floating_point


def _last_of_chain(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The last of the activations and BatchNorms behind a node, each the only reader of the one before it."""
    last = node
    while len(node.users) == 1:
        (node,) = node.users
        if kind(network, node) in (ACTIVATION, NORMALIZATION):
            last = node
        elif not is_identity(network, node):
            break
    return last


def _is_quantized(network: fx.GraphModule, node: fx.Node, sources: set[fx.Node]) -> bool:
    """Whether a value comes from a quantized one through operations that keep it quantized."""
    while node not in sources:
        if kind(network, node) != KEEP and not is_relu(network, node):
            return False
        node = node.all_input_nodes[0]
    return True


def rounded_before(network: fx.GraphModule) -> list[str]:
    """Names of the BatchNorms whose input is quantized, so that their signal is rounded before and after them."""
    norms = [node for node in network.graph.nodes if kind(network, node) == NORMALIZATION]
    points = {node for node in network.graph.nodes if str(node.target).startswith("quantizers.")}
    return [node.target for node in norms if _is_quantized(network, node.all_input_nodes[0], points)]


def origin(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The quantized point that a value comes from, through operations that keep it quantized."""
    while not str(node.target).startswith("quantizers."):
        node = node.all_input_nodes[0]
    return node
