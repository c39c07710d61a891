"""Put the weight and the bias of single layers into a format, in place."""

import warnings

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from rqlib.quantization import formats, observers, points
from rqlib.quantization.fake_quantize import Quantized, quantizer
from rqlib.quantization.formats import Format
from rqlib.quantization.requantize import unit

GRANULARITIES = ("tensor", "channel")
SEED_BIASES = {"INT": formats.INT(32), "POT": formats.POT(8), "FLOAT": formats.FLOAT(16, 7)}
"""Kind of a weight's format -> format of the bias in units of the layer's sum, as in the first implementation."""


def quantize_weight(layer: nn.Module, format: Format, granularity: str = "tensor", ranges: str = "mse") -> None:
    """Put a layer's weight into a format by a parametrization; the stored weight stays as it is.

    Args:
        granularity: one scale per ``tensor``, or one per output ``channel``.
        ranges: ``mse`` for the scale of least error. Any other word means ``minmax`` (`observers.scale`).
    """
    weight = layer.weight.detach()
    rows = weight.flatten(1) if granularity == "channel" else weight.reshape(1, -1)
    method = "mse" if ranges == "mse" else "minmax"
    scale = observers.scale(observers.observe(rows, histogram=method == "mse"), format, method)
    scale = scale.view(-1, *[1] * (weight.dim() - 1)) if granularity == "channel" else scale
    parametrize.register_parametrization(layer, "weight", Quantized(format, scale), unsafe=True)


def quantize_biases(network: fx.GraphModule, biases: dict[str, Format]) -> None:
    """Put the bias of each quantized layer into a format, in units of what one code of the layer's sum is worth.

    That unit is ``s_x s_w``, the scale of the layer's input times that of its weight, at the layer's first call.
    ``biases`` maps the kind of the weight's format to the format of the bias.

    Where a bias is larger than the format holds in this unit (that of a filter whose weights are all 0, or of very fine
    formats), it gets a unit of its own, in which it is the largest value of the format. A warning counts these.
    """
    larger = {}
    for node in network.graph.nodes:
        if points.kind(network, node) != points.WEIGHTED:
            continue
        layer = network.get_submodule(node.target)
        weight, signal = quantizer(layer), network.get_submodule(points.origin(network, node.all_input_nodes[0]).target)
        if weight is not None and layer.bias is not None and quantizer(layer, "bias") is None:
            format, bias = biases[weight.format.kind], layer.bias.detach().double().abs()
            step = weight.scale.flatten().double() * unit(weight.format) * signal.scale.double() * unit(signal.format)
            scale = step / format.unit if format.kind == "INT" else step  # an integer bias counts whole codes
            beyond = bias > format.max * scale
            scale = torch.where(beyond, bias / format.max, scale) if beyond.any() else scale
            larger[node.target] = int(beyond.sum())
            parametrize.register_parametrization(layer, "bias", Quantized(format, scale.float()), unsafe=True)
    if said := [f"{name} ({count})" for name, count in larger.items() if count]:
        warnings.warn(
            f"{sum(larger.values())} biases are larger than their format holds in units of the layer's sum, and are "
            f"rounded in units of their own: {', '.join(said)}",
            stacklevel=3,
        )
