"""Put the weight and the bias of layers on the grid of a format."""

from torch import fx, nn
from torch.nn.utils import parametrize

from rqlib.quantization import formats, observers, points
from rqlib.quantization.fake_quantize import Quantized, quantizer
from rqlib.quantization.formats import Format
from rqlib.quantization.requantize import unit

GRANULARITIES = ("tensor", "channel")
SEED_BIASES = {"INT": formats.INT(32), "POT": formats.POT(8), "FLOAT": formats.FLOAT(16, 7)}
"""Kind of the weight's format -> format of the bias, in units of the layer's sum, as the seed has it."""


def quantize_weight(layer: nn.Module, format: Format, granularity: str = "tensor", ranges: str = "minmax") -> None:
    """Put a layer's weight on the grid of a format, in place, by a parametrization.

    Args:
        granularity: one scale a ``tensor``, or one an output ``channel``.
        ranges: ``mse`` for the scale of least error; otherwise the largest magnitude is the largest value.
    """
    weight = layer.weight.detach()
    rows = weight.flatten(1) if granularity == "channel" else weight.reshape(1, -1)
    method = "mse" if ranges == "mse" else "minmax"
    scale = observers.scale(observers.observe(rows, histogram=method == "mse"), format, method)
    scale = scale.view(-1, *[1] * (weight.dim() - 1)) if granularity == "channel" else scale
    parametrize.register_parametrization(layer, "weight", Quantized(format, scale), unsafe=True)


def quantize_biases(network: fx.GraphModule, biases: dict[str, Format]) -> None:
    """Put each quantized layer's bias on a grid in units of what one code of its sum is worth, ``s_x s_w``, in place.

    A layer that is called again keeps the unit of its first call.

    Args:
        network: with quantized signals.
        biases: kind of the weight's format -> format of the bias.
    """
    for node in network.graph.nodes:
        if points.kind(network, node) != points.WEIGHTED:
            continue
        layer = network.get_submodule(node.target)
        weight, signal = quantizer(layer), network.get_submodule(points.origin(network, node.all_input_nodes[0]).target)
        if weight is not None and layer.bias is not None and quantizer(layer, "bias") is None:
            format = biases[weight.format.kind]
            step = weight.scale.flatten().double() * unit(weight.format) * signal.scale.double() * unit(signal.format)
            scale = step / format.unit if format.kind == "INT" else step  # an integer bias counts whole codes
            parametrize.register_parametrization(layer, "bias", Quantized(format, scale.float()), unsafe=True)
