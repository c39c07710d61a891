"""What is done once before a network is put into formats: BatchNorm is folded, ranges of signals are observed."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import layers, parametrizations, runtime
from rqlib.core.vocabulary import check_pixels
from rqlib.quantization import observers, points
from rqlib.quantization.observers import Range


@dataclass(frozen=True)
class Calibrated:
    """A network that is ready to be put into any format.

    Attributes:
        network: a copy in eval mode with BatchNorm folded, with an identity module ``quantizers.NAME`` at each point
            where a signal is to be quantized.
        signals: name of a point -> the range of its signal; empty if activations stay float.
        ranges: how a range becomes a scale, as `observers.scale` takes it.
    """

    network: nn.Module
    signals: dict[str, Range]
    ranges: str


def calibrate(
    model: nn.Module, images: Tensor, *, ranges: str = "minmax", activations: bool = True, batch_size: int = 250
) -> Calibrated:
    """Fold BatchNorm and observe the ranges of signals, in eval mode and in float32 under every policy.

    A warning names what stays in float: BatchNorms that could not be folded, and layers that have parameters but are
    neither convolutions nor linear.

    Args:
        images: plain training images (N, C, H, W), uint8 or floating point in [0, 1].
        ranges: minmax | percentile | mse. The last two need a histogram and so read the images twice.
        activations: False leaves signals in float. Then images are not used, and the network need not be traceable.

    Raises:
        ValueError: unknown ranges; images that do not fit or are not in [0, 1], or none; torch.fx cannot trace the
            network; a weight, a BatchNorm statistic or a signal is not finite (it is named).
    """
    observers.check_method(ranges)
    check_weights(model)
    folded, reason = parametrizations.bake(model), "it has no convolution or linear layer of its own before it"
    try:
        folded = layers.fold_batchnorm(folded)
    except ValueError as error:
        if activations:
            raise
        folded, reason = folded.eval(), str(error)
    folded = runtime.active().place(folded)
    check_weights(folded)
    _say_what_stays(folded, reason)
    if not activations:
        return Calibrated(folded, {}, ranges)
    network = points.insert(folded, _sample(folded, images))
    return Calibrated(network, _observe(network, images, batch_size, histogram=ranges != "minmax"), ranges)


def check_weights(model: nn.Module) -> None:
    """Raise a ValueError if a parameter or a BatchNorm statistic is NaN or infinite; it names the first such layer."""
    for name, module in model.named_modules():
        tensors = dict(module.named_parameters(recurse=False))
        if isinstance(module, layers.NORMALIZATIONS):
            tensors |= module.named_buffers(recurse=False)
        for parameter_name, parameter in tensors.items():
            if not parameter.isfinite().all():
                count = int((~parameter.isfinite()).sum())
                raise ValueError(
                    f"layer {name or type(model).__name__}: {count} of {parameter.numel()} values of {parameter_name} "
                    "are NaN or infinite; no format holds them. Train again, or load a whole checkpoint"
                )


def _say_what_stays(folded: nn.Module, reason: str) -> None:
    """Warn of BatchNorms, left for this reason, and of other layers with parameters that stay in float."""
    unfolded = [name for name, _ in layers.batchnorms(folded)]
    known = (*layers.WEIGHTED, *layers.NORMALIZATIONS)
    others = [
        f"{name} ({type(module).__name__})"
        for name, module in folded.named_modules()
        if not isinstance(module, known) and any(True for _ in module.parameters(recurse=False))
    ]
    if unfolded:
        warnings.warn(f"BatchNorm stays as it is: {reason}: {', '.join(unfolded)}", stacklevel=4)
    if others:
        warnings.warn(f"neither convolution nor linear, stays in float: {', '.join(others)}", stacklevel=4)


@torch.no_grad()
def _sample(model: nn.Module, images: Tensor) -> Tensor:
    """The first two images as a batch, after a check that the network accepts the images."""
    if len(images) == 0:
        raise ValueError("expected calibration images, got none; 1,024 plain training images are plenty")
    if len(images.shape) != 4:
        raise ValueError(f"expected calibration images (N, C, H, W), got shape {tuple(images.shape)}")
    if images.dtype.is_floating_point:
        check_pixels(images, "calibration images", nan="they hold NaN")
    x, _ = next(data.batches(images, torch.zeros(len(images)), 2))
    try:
        model(x)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        shape = tuple(images.shape)
        raise ValueError(f"calibration images of shape {shape} do not fit the network: {reason}") from error
    return x


def _observe(network: nn.Module, images: Tensor, batch_size: int, *, histogram: bool) -> dict[str, Range]:
    """Name of a point -> the range of its signal over all images."""
    maxima, counts = {}, {}

    def widen(name: str, signal: Tensor) -> None:
        maxima[name] = torch.maximum(signal.abs().amax().float().view(1), maxima.get(name, signal.new_zeros(1)))

    def count(name: str, signal: Tensor) -> None:
        counts[name] = counts.get(name, 0) + observers.histogram_of(signal.reshape(1, -1), maxima[name])

    _stream(network, images, batch_size, widen)
    for name, maximum in maxima.items():
        if not maximum.isfinite():
            raise ValueError(f"signal {name} is not finite on the calibration images; no format holds it")
    if histogram:
        _stream(network, images, batch_size, count)
    return {name: Range(maximum, counts.get(name)) for name, maximum in maxima.items()}


@torch.no_grad()
def _stream(network: nn.Module, images: Tensor, batch_size: int, look: Callable[[str, Tensor], None]) -> None:
    """Run the images through the network and call ``look(name, signal)`` for every signal that is to be quantized."""
    names = [f"quantizers.{name}" for name, _ in network.quantizers.named_children()]
    with layers.watching(network, names, lambda name, _, signal: look(name.removeprefix("quantizers."), signal)):
        for x, _ in data.batches(images, torch.zeros(len(images)), batch_size):
            network(x)
