"""Before any format: fold BatchNorm, find where signals are quantized, observe their ranges once, freeze them."""

import copy
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
    """A network ready for any format.

    ``network``: a copy in eval mode, BatchNorm folded, with an identity module ``quantizers.NAME`` at each
    point of ``signals`` (point -> its range; empty where activations stay float). ``unfolded``: the
    BatchNorms that could not be folded. ``ranges``: how a range becomes a scale (`observers.scale`).
    """

    network: nn.Module
    signals: dict[str, Range]
    ranges: str
    unfolded: tuple[str, ...]


def calibrate(
    model: nn.Module, images: Tensor, *, ranges: str = "minmax", activations: bool = True, batch_size: int = 250
) -> Calibrated:
    """Fold BatchNorm and observe the signals' ranges, in eval mode and float32 whatever the policy.

    A warning names what stays in float: BatchNorms that could not be folded, layers that are neither
    convolution nor linear yet have parameters.

    Args:
        images: plain training images, uint8 or floating point in [0, 1], (N, C, H, W).
        ranges: minmax | percentile | mse; all but minmax read the images twice.
        activations: False leaves signals alone, and needs neither images nor a graph.

    Raises:
        ValueError: unknown ranges, images that are none, do not fit or are not in [0, 1], a network that
            cannot be traced, weights, BatchNorm statistics or signals that are not finite (named).
    """
    if ranges not in observers.METHODS:
        raise ValueError(f"expected ranges {' | '.join(observers.METHODS)}, got {ranges!r}")
    check_weights(model)
    folded, reason = _folded(parametrizations.bake(model), required=activations)
    folded = runtime.active().place(folded)
    check_weights(folded)
    unfolded = tuple(name for name, _ in layers.batchnorms(folded))
    _say_what_stays(folded, unfolded, reason)
    if not activations:
        return Calibrated(folded, {}, ranges, unfolded)
    network = points.insert(folded, _sample(folded, images))
    return Calibrated(network, _observe(network, images, batch_size, histogram=ranges != "minmax"), ranges, unfolded)


def check_weights(model: nn.Module) -> None:
    """Raise a ValueError that names the first layer with a NaN or infinite parameter or BatchNorm statistic."""
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


def _folded(model: nn.Module, *, required: bool) -> tuple[nn.Module, str]:
    """A copy with BatchNorm folded, and why one that is left could not be."""
    try:
        return layers.fold_batchnorm(model), "it has no convolution or linear layer of its own before it"
    except ValueError as error:
        if required:
            raise
        return copy.deepcopy(model).eval(), str(error)


def _say_what_stays(folded: nn.Module, unfolded: tuple[str, ...], reason: str) -> None:
    """Warn of what is left in float."""
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
    """The first images, after a check that they are such as the network takes."""
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
    """Run the images through the network and show ``look(name, signal)`` every signal to be quantized."""
    names = [f"quantizers.{name}" for name, _ in network.quantizers.named_children()]
    with layers.watching(network, names, lambda name, _, signal: look(name.removeprefix("quantizers."), signal)):
        for x, _ in data.batches(images, torch.zeros(len(images)), batch_size):
            network(x)
