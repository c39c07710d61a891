"""Post-training quantization: a trained network is put into a number format without further training."""

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
    """A quantized copy of a network: its weights and signals take only values of a format.

    The copy computes ``scale round(x / scale)`` in floating point, and gradients pass the rounding (`Quantized`), so it
    can be attacked and trained further. `quantization.lower` gives its integer form. Signals are quantized at the
    points that `points` describes; the first is the normalized image. Score the copy in float32 or by
    `quantization.sweep`: under a bfloat16 policy autocast would round the quantized values once more.

    Args:
        model: pixels to logits; any network that torch.fx can trace. With ``activations=False`` any network.
        format: of the weights; or a mapping of layer names to formats, where layers that are not named stay float.
        calibration_images: plain training images, uint8 or floating point in [0, 1]; 1,024 are enough.
        granularity: one scale per weight ``tensor``, or one per output ``channel``.
        activations: the format of the signals; True for that of the weights, False to leave signals in float.
        ranges: how the range of a signal or weight becomes a scale: minmax | percentile | mse (`observers.scale`).
            With percentile, weights still use minmax.
        bias: ``float`` leaves biases as they are. ``seed``, the rule of the first implementation, rounds each bias in
            units of what one code of the layer's sum is worth: to a 32-bit integer for INT, to POT_8 for POT, to
            FLOAT_16_E7 for FLOAT.

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
    """A copy of a calibrated network in a format. Arguments as `ptq`.

    Raises:
        ValueError: an option or layer is unknown; weights have different formats and none is given for the signals;
            ``bias="seed"`` without quantized signals.
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
        if activations is True and isinstance(format, Mapping):
            raise ValueError(
                "each layer has its own format; say which one the signals take: activations=INT(8), or False"
            )
        chosen = parse(format if activations is True else activations)
        for name, observed in calibrated.signals.items():
            scale = observers.scale(observed, chosen, calibrated.ranges)
            setattr(network.quantizers, name, Quantized(chosen, scale))
    if bias == "seed":
        layer_formats.quantize_biases(network, layer_formats.SEED_BIASES)
    return network


def _weight_formats(network: nn.Module, format: Formats) -> dict[str, Format]:
    """Layer name -> format of its weight."""
    names = [name for name, _ in layers.weighted_layers(network)]
    if not isinstance(format, Mapping):
        return dict.fromkeys(names, parse(format))
    if unknown := set(format) - set(names):
        raise ValueError(f"no convolution or linear layer is named {sorted(unknown)}; there are {', '.join(names)}")
    return {name: parse(chosen) for name, chosen in format.items()}
