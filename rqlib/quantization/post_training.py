"""Post-training quantization: a trained network is put into a number format without further training."""

import copy
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from rqlib.core import layers
from rqlib.core.vocabulary import did_you_mean
from rqlib.quantization import bias_correction, calibration, equalization, layer_formats, signal_forms
from rqlib.quantization.calibration import Calibrated
from rqlib.quantization.fake_quantize import Quantized
from rqlib.quantization.formats import Format, parse

BIASES = ("float", "seed")
REPAIRS = ("equalization", "equalization_without_relu6", "bias_correction", "bias_correction_batchnorm")
Formats = Format | str | Mapping[str, Format | str]


def ptq(
    model: nn.Module,
    format: Formats,
    calibration_images: Tensor,
    *,
    granularity: str = "tensor",
    activations: bool | Format | str = True,
    ranges: str = "mse",
    nonnegative: str = "unsigned",
    bias: str = "float",
    repairs: Iterable[str] = (),
) -> nn.Module:
    """A quantized copy of a network: its weights and signals take only values of a format.

    The copy computes ``scale round(x / scale)`` in floating point, and gradients pass the rounding (`Quantized`), so it
    can be attacked and trained further. `quantization.lower` gives its integer form. Signals are quantized at the
    points that `points` describes; the first is the normalized image. Score the copy in float32 or by
    `quantization.sweep`: under a bfloat16 policy autocast would round the quantized values once more.

    Args:
        model: any network that `core.entry.classifier` accepts. Where torch.fx cannot trace it, a warning says so, and
            only its weights are quantized.
        format: of the weights; or a mapping of layer names to formats, where layers that are not named stay float.
        calibration_images: plain training images, uint8 or floating point in [0, 1]; 1,024 are enough.
        granularity: one scale per weight ``tensor``, or one per output ``channel``.
        activations: the format of the signals; True for that of the weights, False to leave signals in float.
        ranges: how the range of a signal or weight becomes a scale: mse | minmax | percentile (`observers.scale`).
            With percentile, weights still use minmax.
        nonnegative: which form of the format a signal takes (`signal_forms.fitting`). ``unsigned``: `Format.unsigned`,
            which spends no codes on negative values, if the signal has none on the calibration images. ``zero_point``:
            the same for signals that have none, and for the others an evenly spaced format spends only as many codes on
            negative values as they need. ``signed``, the rule of the first implementation: the format itself.
        bias: ``float`` leaves biases as they are. ``seed``, the rule of the first implementation, rounds each bias in
            units of what one code of the layer's sum is worth: to a 32-bit integer for INT, to POT_8 for POT, to
            FLOAT_16_E7 for FLOAT.
        repairs: any of `REPAIRS`, each of which lowers the error of rounding without training. ``equalization``: equal
            ranges of the channels between two layers (`equalization.equalized`). ``equalization_without_relu6``: the
            same, and every ReLU6 becomes a ReLU, through which it can pass. ``bias_correction``: the mean output of
            each layer, on the calibration images, becomes what it was (`bias_correction.by_images`).
            ``bias_correction_batchnorm``: the same from BatchNorm's statistics, without images
            (`bias_correction.by_batchnorm`).

    Raises:
        ValueError: as `calibration.calibrate` and `apply`; an unknown repair, or repairs that exclude each other.
    """
    repairs = _checked(repairs, bias)
    means = bias_correction.expected_inputs(model) if "bias_correction_batchnorm" in repairs else {}
    if {"equalization", "equalization_without_relu6"} & repairs:
        without = "equalization_without_relu6" in repairs
        model, factors = equalization.equalized(model, calibration_images, relu6_as_relu=without)
        means = bias_correction.divided(means, factors)
    calibrated = calibration.calibrate(model, calibration_images, ranges=ranges, activations=activations is not False)
    network = apply(
        calibrated, format, granularity=granularity, activations=activations, nonnegative=nonnegative, bias=bias
    )
    if "bias_correction" in repairs:
        bias_correction.by_images(network, calibrated.network, calibration_images)
    if "bias_correction_batchnorm" in repairs:
        bias_correction.by_batchnorm(network, means)
    return network


def _checked(repairs: Iterable[str], bias: str) -> set[str]:
    """The repairs as a set; a ValueError refuses unknown ones and those that exclude each other."""
    chosen = [repairs] if isinstance(repairs, str) else list(repairs)
    for name in chosen:
        if name not in REPAIRS:
            raise ValueError(did_you_mean("repair", name, REPAIRS))
    corrections = sum(name.startswith("bias_correction") for name in set(chosen))
    if corrections == 2 or len(set(chosen)) - corrections == 2:
        raise ValueError(f"expected one equalization and one bias correction at most, got {', '.join(chosen)}")
    if corrections and bias != "float":
        raise ValueError(f"bias={bias!r} rounds the biases that a bias correction changes; use bias='float'")
    return set(chosen)


def apply(
    calibrated: Calibrated,
    format: Formats,
    *,
    granularity: str = "tensor",
    activations: bool | Format | str = True,
    nonnegative: str = "unsigned",
    bias: str = "float",
) -> nn.Module:
    """A copy of a calibrated network in a format. Arguments as `ptq`.

    Raises:
        ValueError: an option or layer is unknown; weights have different formats and none is given for the signals;
            ``bias="seed"`` without quantized signals.
    """
    if granularity not in layer_formats.GRANULARITIES:
        raise ValueError(f"expected granularity {' | '.join(layer_formats.GRANULARITIES)}, got {granularity!r}")
    signal_forms.check(nonnegative)
    if bias not in BIASES:
        raise ValueError(f"expected bias {' | '.join(BIASES)}, got {bias!r}")
    if bias == "seed" and (activations is False or not calibrated.signals):
        raise ValueError("bias='seed' scales by s_x s_w and so needs quantized signals; use bias='float'")
    network = copy.deepcopy(calibrated.network)
    for name, chosen in _weight_formats(network, format).items():
        _check_signed(chosen)
        layer_formats.quantize_weight(network.get_submodule(name), chosen, granularity, calibrated.ranges)
    if calibrated.signals and activations is not False:
        if activations is True and isinstance(format, Mapping):
            raise ValueError(
                "each layer has its own format; say which one the signals take: activations=INT(8), or False"
            )
        chosen = parse(format if activations is True else activations)
        _check_signed(chosen)
        for name, observed in calibrated.signals.items():
            form, scale = signal_forms.fitting(observed, chosen, calibrated.ranges, nonnegative)
            setattr(network.quantizers, name, Quantized(form, scale))
    if bias == "seed":
        layer_formats.quantize_biases(network, layer_formats.SEED_BIASES)
    return network


def _check_signed(format: Format) -> None:
    if not format.signed:
        raise ValueError(
            f"expected a format with a sign, got {format.name}: weights are negative, too, and signals that are never "
            "negative take the unsigned form of a format by themselves (nonnegative='unsigned' or 'zero_point')"
        )


def _weight_formats(network: nn.Module, format: Formats) -> dict[str, Format]:
    """Layer name -> format of its weight."""
    names = [name for name, _ in layers.weighted_layers(network)]
    if not isinstance(format, Mapping):
        return dict.fromkeys(names, parse(format))
    if unknown := set(format) - set(names):
        raise ValueError(f"no convolution or linear layer is named {sorted(unknown)}; there are {', '.join(names)}")
    return {name: parse(chosen) for name, chosen in format.items()}
