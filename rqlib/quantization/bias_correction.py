"""Bias correction: rounding a weight shifts the mean of a layer's output; the bias takes the shift back.

The mean output of channel j changes by ``sum_i (Q(W) - W)_ji E[x_i]``, summed over inputs i and over the kernel. It is
subtracted from the bias. What the means are can be observed on images, or follows from the BatchNorm before the layer.

Source: M. Nagel et al. 2019, Data-free quantization through weight equalization and bias correction, arXiv:1906.04721.
"""

import copy
import warnings

import torch
from torch import Tensor, fx, nn

from rqlib import data
from rqlib.core import layers, parametrizations, runtime
from rqlib.core.entry import classifier
from rqlib.quantization import fake_quantize, points

MOST_IMAGES = 512
"""So many calibration images are read at most; they pass the network together."""
_NODES = torch.linspace(-8, 8, 4001, dtype=torch.float64)  # where the density of a normal distribution is summed
_DENSITY = torch.exp(-_NODES.square() / 2) / torch.exp(-_NODES.square() / 2).sum()


@torch.no_grad()
def by_images(quantized: nn.Module, floating: nn.Module, images: Tensor) -> None:
    """Give every layer of a quantized network the mean output that it has in float, on images, in place.

    Layer after layer, in the order in which they are called, the mean output of each channel (before the activation)
    is compared with that of the float network, and the bias takes the difference. So what earlier layers and rounded
    signals shift is corrected, too. A layer that is called several times is corrected at its first call.

    Args:
        quantized: of `post_training.apply`, with biases in float.
        floating: the same network before its weights and signals were rounded.
        images: uint8 or in [0, 1], (N, C, H, W); the first `MOST_IMAGES` are used.
    """
    x, _ = next(data.batches(images[:MOST_IMAGES], torch.zeros(min(len(images), MOST_IMAGES)), MOST_IMAGES))
    expected: dict[str, Tensor] = {}
    names = [name for name, _ in layers.weighted_layers(floating)]
    with layers.watching(floating, names, lambda name, _, output: expected.setdefault(name, _channel_means(output))):
        floating(x)
    handles = [quantized.get_submodule(name).register_forward_hook(_corrector(mean)) for name, mean in expected.items()]
    try:
        quantized(x)
    finally:
        for handle in handles:
            handle.remove()


def _corrector(expected: Tensor):
    """A hook that shifts a layer's bias and its output so that the output has the expected means; later calls not."""
    done = []

    def correct(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if done:
            return output  # the bias of this call has the shift already
        done.append(expected - _channel_means(output))
        shift_bias(layer, done[0])
        return output + done[0].view(-1, *[1] * (output.dim() - 2 if _has_channels(layer) else 0))

    return correct


def _has_channels(layer: nn.Module) -> bool:
    return isinstance(layer, layers.CONVOLUTIONS)


def _channel_means(output: Tensor) -> Tensor:
    """The mean of each output channel of a convolution (B, C, ...), or of each feature of a linear layer (..., C)."""
    return output.double().mean([0, *range(2, output.dim())]).float()


@torch.no_grad()
def shift_bias(layer: nn.Module, shift: Tensor) -> None:
    """Add to a layer's bias; a layer without one is given one, and one that is shared becomes the layer's own."""
    bias = torch.zeros_like(shift).to(layer.weight) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter(bias + shift.to(bias))


@torch.no_grad()
def by_batchnorm(quantized: nn.Module, means: dict[str, Tensor]) -> None:
    """Subtract ``sum (Q(W) - W) E[x]`` from the bias of every quantized layer, in place, without any image.

    A warning names the layers whose mean inputs are not known; their biases stay.

    Args:
        means: layer -> mean of each input channel, as `expected_inputs` finds them.
    """
    unknown = []
    for name, layer in layers.weighted_layers(quantized):
        if fake_quantize.quantizer(layer) is None:
            continue
        if name not in means:
            unknown.append(name)
            continue
        error = (layer.weight - layer.parametrizations.weight.original).double()
        groups, mean = getattr(layer, "groups", 1), means[name].double()
        rows = error.view(groups, len(error) // groups, error.shape[1], -1).sum(3)  # groups, outputs, inputs of a group
        shift = torch.einsum("goi,gi->go", rows, mean.view(groups, -1)).flatten()
        shift_bias(layer, -shift)
    if unknown:
        warnings.warn(
            f"bias correction: no BatchNorm tells the mean input of {', '.join(unknown)}; their biases stay. "
            "repairs=('bias_correction',) finds it on the calibration images",
            stacklevel=3,
        )


def divided(means: dict[str, Tensor], factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean inputs after `equalization.equalized` has divided the inputs of some layers by a factor per channel."""
    return {
        name: mean / factors[name].repeat_interleave(len(mean) // len(factors[name])) if name in factors else mean
        for name, mean in means.items()
    }


@torch.no_grad()
def expected_inputs(model: nn.Module) -> dict[str, Tensor]:
    """The mean of every input channel of each layer, as far as BatchNorm tells it: layer -> (C,).

    The output of a BatchNorm is taken to be normal, with its bias as mean and its weight as standard deviation, and an
    activation behind it changes the mean accordingly; behind a ReLU it is ``b Phi(b / g) + g phi(b / g)`` of the bias b
    and the weight g. Average pools keep means, sums add them, concatenations join them. Max-pools and activations
    behind sums are unknown, and so is what follows them up to the next BatchNorm.

    Raises:
        ValueError: torch.fx cannot trace the network.
    """
    plain = runtime.active().place(parametrizations.bake(classifier(model)).float().eval())
    network = fx.GraphModule(plain, layers.trace(plain))
    known: dict[fx.Node, tuple[Tensor, Tensor | None]] = {}
    means = {}
    for node in network.graph.nodes:
        sources = [known.get(source) for source in node.all_input_nodes]
        if points.kind(network, node) == points.WEIGHTED and sources[0] is not None:
            means.setdefault(node.target, _for_layer(network.get_submodule(node.target), sources[0][0]))
        moments = _moments(network, node, sources)
        if moments is not None:
            known[node] = moments
    return {name: mean for name, mean in means.items() if mean is not None}


def _moments(network: fx.GraphModule, node: fx.Node, sources: list) -> tuple[Tensor, Tensor | None] | None:
    """(mean, standard deviation if normal) of each channel of a value; None if unknown."""
    module = network.get_submodule(node.target) if node.op == "call_module" else None
    kind = points.kind(network, node)
    if kind == points.NORMALIZATION and module.running_mean is not None:
        ones = torch.ones_like(module.running_mean)
        return (0 * ones, ones) if module.weight is None else (module.bias.detach(), module.weight.detach().abs())
    if not sources or any(source is None for source in sources):
        return None
    mean, deviation = sources[0]
    if kind == points.ACTIVATION:
        return None if deviation is None else (_mean_of(network, node, mean, deviation), None)
    if kind == points.AVERAGE:
        return mean, None
    if kind == points.SUM and len(sources) == 2 and not node.kwargs:
        return mean + sources[1][0], None
    if kind == points.CONCAT:
        return torch.cat([source[0] for source in sources]), None
    keeps = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)
    if isinstance(module, keeps) or node.target in (
        torch.flatten,
        "flatten",
        "contiguous",
        torch.nn.functional.dropout,
    ):
        return mean, deviation
    return None


def _mean_of(network: fx.GraphModule, node: fx.Node, mean: Tensor, deviation: Tensor) -> Tensor:
    """The mean of an activation of normal values, channel by channel, by a sum over the density."""
    nodes, density = _NODES.to(mean.device), _DENSITY.to(mean.device)
    x = mean.double() + deviation.double() * nodes[:, None]  # points, channels
    if node.op == "call_module":
        y = copy.deepcopy(network.get_submodule(node.target)).double()(x.clone())
    elif node.op == "call_method":
        y = getattr(x.clone(), node.target)(*node.args[1:], **node.kwargs)
    else:
        y = node.target(x.clone(), *node.args[1:], **node.kwargs)
    return (density @ y).float()


def _for_layer(layer: nn.Module, mean: Tensor) -> Tensor | None:
    """The mean of each input of a layer; a linear layer may see several values of each channel."""
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return mean.repeat_interleave(inputs // len(mean)) if inputs % len(mean) == 0 else None
