"""Cross-layer equalization: give the channels between two layers equal ranges, without changing what is computed.

A positively homogeneous activation f, such as ReLU, has ``f(s x) = s f(x)`` for s > 0. So channel i of a layer may be
divided by any ``s_i > 0`` if the next layer multiplies it by ``s_i`` again. With ``s_i = sqrt(r1_i / r2_i)`` both
layers give channel i the same range, ``sqrt(r1_i r2_i)``, where r1_i is the largest magnitude of the weights that
produce channel i and r2_i that of the weights that read it. No channel is then lost in the step of one scale for the
whole tensor.

Source: M. Nagel et al. 2019, Data-free quantization through weight equalization and bias correction, arXiv:1906.04721.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rqlib import data
from rqlib.core import derived, layers, parametrizations, runtime
from rqlib.core.entry import classifier
from rqlib.quantization import points

ROUNDS, TOLERANCE = 100, 1e-3  # the pairs of a chain are equalized in turn until no factor is farther from 1
CHECKED = 1e-3  # largest relative error of the logits: rounding, which deep networks amplify
_PASSED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.ZeroPad2d) + (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_PASSED_FUNCTIONS = (torch.relu, F.relu, F.leaky_relu, F.dropout, torch.flatten, F.max_pool2d, F.avg_pool2d) + (
    *(F.adaptive_avg_pool2d, F.adaptive_max_pool2d, "relu", "relu_", "flatten", "contiguous"),
)


@torch.no_grad()
def equalized(
    model: nn.Module, images: Tensor | None = None, *, relu6_as_relu: bool = False
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy with BatchNorm folded in which layers that follow each other give each channel between them equal ranges.

    It computes what the network computes, up to rounding in float32. Two layers follow each other if only
    ReLU, LeakyReLU, PReLU, pools and flattening lie between, and nothing else reads what lies between. In a chain of
    three, such as a 1x1, a depthwise and a 1x1 convolution, all three ranges of a channel become equal. Channels whose
    weights are all 0 stay as they are.

    Args:
        images: uint8 or in [0, 1], (N, C, H, W); on the first four the copy is compared with the network. None compares
            nothing.
        relu6_as_relu: let every ReLU6, which is not homogeneous, be a ReLU. This changes what the network computes
            where it exceeds 6, so then it is compared with the network with ReLU.

    Returns:
        The copy, and for each layer that reads equalized channels the factors ``s_i`` that divided them.

    Raises:
        ValueError: torch.fx cannot trace the network, or nothing in it can be equalized.
        derived.NotEqual: the copy computes something else.
    """
    folded = layers.fold_batchnorm(parametrizations.bake(classifier(model)).float())
    folded = runtime.active().place(folded)
    network = fx.GraphModule(folded, layers.trace(folded), type(model).__name__)
    if relu6_as_relu:
        _replace_relu6(network)
    before = parametrizations.bake(network)
    found = pairs(network)
    if not found:
        raise ValueError("no two layers follow each other with a ReLU between them, so nothing can be equalized")
    network.double()  # so that each weight is rounded only once, at the end
    total: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        largest = 0.0
        for first, second in found:
            factors = _equalize(network.get_submodule(first), network.get_submodule(second))
            total[second] = total.get(second, 1) * factors
            largest = max(largest, factors.log().abs().max().item())
        if largest < TOLERANCE:
            break
    network.float()
    if images is not None:
        x, _ = next(data.batches(images[:4], torch.zeros(len(images[:4])), 4))
        derived.check(before, network, x, what="cross-layer equalization", tolerance=CHECKED)
    return network, total


def pairs(network: fx.GraphModule) -> list[tuple[str, str]]:
    """Names of layers that follow each other; each is called once and shares its weight with no other layer."""
    calls = [node for node in network.graph.nodes if points.kind(network, node) == points.WEIGHTED]
    times = Counter(id(network.get_submodule(node.target).weight) for node in calls)
    alone = [node for node in calls if times[id(network.get_submodule(node.target).weight)] == 1]
    found = [(node, _next(network, node)) for node in alone]
    return [
        (first.target, second.target)
        for first, second in found
        if second in alone and _fit(network.get_submodule(first.target), network.get_submodule(second.target))
    ]


def _next(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The layer that alone reads a layer's output, through what a positive factor per channel passes; or None."""
    first = network.get_submodule(node.target)
    while len(node.users) == 1:
        (node,) = node.users
        if points.kind(network, node) == points.WEIGHTED:
            return node
        module = network.get_submodule(node.target) if node.op == "call_module" else None
        if not (isinstance(module, _PASSED) if module is not None else node.target in _PASSED_FUNCTIONS):
            return None
        if not _keeps_channels(first, module, node):
            return None
    return None


def _keeps_channels(first: nn.Module, module: nn.Module | None, node: fx.Node) -> bool:
    """Whether the values of each channel of the first layer are still neighbors behind an operation.

    They are not if something else than a whole image is flattened, such as the features of several tokens.
    """
    if isinstance(module, nn.Flatten):
        whole = (module.start_dim, module.end_dim) == (1, -1)
    elif node.target in (torch.flatten, "flatten"):
        whole = (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1))
    else:
        return True
    return whole and not isinstance(first, nn.Linear)


def _fit(first: nn.Module, second: nn.Module) -> bool:
    """Whether the inputs of the second layer are the channels of the first, or several values of each of them."""
    inputs = second.in_features if isinstance(second, nn.Linear) else second.in_channels
    return inputs % len(first.weight) == 0 and (isinstance(second, nn.Linear) or inputs == len(first.weight))


def _equalize(first: nn.Module, second: nn.Module) -> Tensor:
    """Equalize two layers in place; the factors ``s_i``."""
    channels, groups = len(first.weight), getattr(second, "groups", 1)
    produced = first.weight.flatten(1).abs().amax(1)
    rows = second.weight.view(groups, len(second.weight) // groups, channels // groups, -1)
    read = rows.abs().amax((1, 3)).flatten()
    factors = torch.where((produced > 0) & (read > 0), (produced / read).sqrt(), 1.0)
    first.weight /= factors.view(-1, *[1] * (first.weight.dim() - 1))
    if first.bias is not None:
        first.bias /= factors
    rows *= factors.view(groups, 1, channels // groups, 1)
    return factors


def _replace_relu6(network: fx.GraphModule) -> None:
    """Let every ReLU6 of a graph be a ReLU, in place."""
    for node in network.graph.nodes:
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), nn.ReLU6):
            network.set_submodule(node.target, nn.ReLU())
        if node.target is F.relu6:
            node.target = F.relu
    network.recompile()
