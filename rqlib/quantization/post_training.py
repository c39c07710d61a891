"""Post-training quantization of any network, and the sweep over many formats.

Bias rules: ``float`` leaves biases alone; ``seed`` puts them on a grid in units of the layer's sum, ``s_x s_w``:
integers of 32 bits for INT, POT_8 for POT, FLOAT_16_E7 for FLOAT.
"""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from rqlib.core import layers
from rqlib.quantization import calibration, layer_formats, observers
from rqlib.quantization.calibration import Calibrated
from rqlib.quantization.fake_quantize import Quantized
from rqlib.quantization.formats import Format, parse

BIASES = ("float", "seed")
Formats = Format | str | Mapping[str, Format | str]


def ptq(
    model: nn.Module,
    format: Formats,
    calibration_images: Tensor,
    *,
    granularity: str = "tensor",
    activations: bool | Format | str = True,
    ranges: str = "minmax",
    bias: str = "float",
) -> nn.Module:
    """A quantized copy of a network: weights and signals on the grid of a format, gradients straight through.

    It computes ``scale round(x / scale)`` in floating point, for attacks and to be trained on (`training.fit`);
    `quantization.lower` gives its integer form. Signals are quantized where `quantization_points` says; the first
    is the normalized image. Under a bfloat16 policy autocast rounds operands once more: scores are for
    float32, or for `sweep`.

    Args:
        model: pixels to logits; any network that torch.fx can trace (weights alone: any network).
        format: of the weights; or layer name -> format, layers without one stay float.
        calibration_images: plain training images, uint8 or in [0, 1]; 1,024 are plenty.
        granularity: one weight scale a ``tensor``, or one an output ``channel``.
        activations: True for the format of the weights, False for none, or a format.
        ranges: minmax | percentile (of signals; weights keep minmax) | mse.
        bias: float | seed.

    Raises:
        ValueError: as `calibration.calibrate` and `apply`.
    """
    calibrated = calibration.calibrate(model, calibration_images, ranges=ranges, activations=activations is not False)
    return apply(calibrated, format, granularity=granularity, activations=activations, bias=bias)


def apply(
    calibrated: Calibrated,
    format: Formats,
    *,
    granularity: str = "tensor",
    activations: bool | Format | str = True,
    bias: str = "float",
) -> nn.Module:
    """A copy of a calibrated network on the grid of a format. Arguments as `ptq`.

    Raises:
        ValueError: unknown option or layer; one format for the signals cannot be told; a bias rule that
            needs quantized signals where there are none.
    """
    if granularity not in layer_formats.GRANULARITIES:
        raise ValueError(f"expected granularity {' | '.join(layer_formats.GRANULARITIES)}, got {granularity!r}")
    if bias not in BIASES:
        raise ValueError(f"expected bias {' | '.join(BIASES)}, got {bias!r}")
    if bias == "seed" and (activations is False or not calibrated.signals):
        raise ValueError("bias='seed' scales by s_x s_w and so needs quantized signals; use bias='float'")
    network = copy.deepcopy(calibrated.network)
    for name, chosen in _weight_formats(network, format).items():
        layer_formats.quantize_weight(network.get_submodule(name), chosen, granularity, calibrated.ranges)
    if calibrated.signals and activations is not False:
        chosen = _signal_format(format, activations)
        for name, observed in calibrated.signals.items():
            scale = observers.scale(observed, chosen, calibrated.ranges)
            setattr(network.quantizers, name, Quantized(chosen, scale))
    if bias == "seed":
        layer_formats.quantize_biases(network, layer_formats.SEED_BIASES)
    return network


def _weight_formats(network: nn.Module, format: Formats) -> dict[str, Format]:
    names = [name for name, _ in layers.weighted_layers(network)]
    if not isinstance(format, Mapping):
        return dict.fromkeys(names, parse(format))
    if unknown := set(format) - set(names):
        raise ValueError(f"no convolution or linear layer is named {sorted(unknown)}; there are {', '.join(names)}")
    return {name: parse(chosen) for name, chosen in format.items()}


def _signal_format(format: Formats, activations: bool | Format | str) -> Format:
    if activations is not True:
        return parse(activations)
    if isinstance(format, Mapping):
        raise ValueError("weights have a format a layer; say which the signals take, activations=INT(8), or False")
    return parse(format)
