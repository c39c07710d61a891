"""What is done once before a network is put into formats: BatchNorm is folded, ranges of signals are observed."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from rqlib import data
from rqlib.core import derived, layers, parametrizations, runtime
from rqlib.core.entry import classifier
from rqlib.core.vocabulary import check_pixels
from rqlib.defenses.activations import FEW_LEVELS
from rqlib.quantization import observers, points
from rqlib.quantization.observers import Range

SAMPLE = 4
"""So many images a quantized network keeps, on which what is derived from it is compared with it."""


@dataclass(frozen=True)
class Calibrated:
    """A network that is ready to be put into any format.

    Attributes:
        network: a copy in eval mode with BatchNorm folded, with an identity module ``quantizers.NAME`` at each point
            where a signal is to be quantized, and a few images as ``network.meta['calibration_sample']``.
        signals: name of a point -> the range of its signal; empty if activations stay float.
        ranges: how a range becomes a scale, as `observers.scale` takes it.
    """

    network: nn.Module
    signals: dict[str, Range]
    ranges: str


def calibrate(
    model: nn.Module, images: Tensor, *, ranges: str = "mse", activations: bool = True, batch_size: int = 250
) -> Calibrated:
    """Fold BatchNorm and observe the ranges of signals, in eval mode and in float32 under every policy.

    A network in another precision is copied to float32. What is derived from the network, without BatchNorm and
    traced, is compared with it on a few of the images (`core.derived.check`).

    A warning names what stays in float: BatchNorms that could not be folded, with what that costs, and layers that have
    parameters but are neither convolutions nor linear. Where torch.fx cannot trace the network, signals stay in
    float, and a warning says why: then only weights are put into formats.

    Args:
        model: any network that `core.entry.classifier` accepts.
        images: plain training images (N, C, H, W), uint8 or floating point in [0, 1].
        ranges: mse | minmax | percentile. All but minmax need a histogram and so read the images twice.
        activations: False leaves signals in float. Then images may be None.

    Raises:
        ValueError: unknown ranges; images that do not fit or are not in [0, 1], or none; an operation works in place
            and has no other form; a weight, a BatchNorm statistic or a signal is not finite (it is named).
        core.derived.NotEqual: the traced network computes something else than the network.
    """
    observers.check_method(ranges)
    model = classifier(model)
    check_weights(model)
    plain = runtime.active().place(parametrizations.bake(model).float().eval())
    x = _sample(plain, images) if activations or images is not None else None
    network, reason = _folded(plain, x)
    check_weights(network)
    if activations and not reason:
        network = _with_points(plain, network, x)
        _warn_of_batchnorm(network)
    elif reason or any(layers.batchnorms(network)):
        _warn_of_float(network, reason, activations)
    _warn_of_other_layers(network)
    if not hasattr(network, "quantizers"):
        return Calibrated(network, {}, ranges)
    return Calibrated(network, _observe(network, images, batch_size, histogram=ranges != "minmax"), ranges)


def _folded(plain: nn.Module, x: Tensor | None) -> tuple[nn.Module, str]:
    """The network with BatchNorm folded, compared with it on x; or itself and why it cannot be folded."""
    try:
        folded = runtime.active().place(layers.fold_batchnorm(plain))
        if x is not None:
            derived.check(plain, folded, x, what="folding BatchNorm")
    except ValueError as error:
        return plain, str(error)
    return folded, ""


def _with_points(plain: nn.Module, folded: nn.Module, x: Tensor) -> nn.Module:
    """The graph of a folded network with its points, compared with the network on x, which it keeps."""
    network = points.insert(folded, x)
    try:
        derived.check(plain, network, x, what="tracing (torch.fx)")
    except derived.NotEqual as error:
        raise derived.NotEqual(f"{error}; quantize its weights alone (activations=False)") from error
    network.meta["calibration_sample"] = x
    return network


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


NOT_FOLDED = "BatchNorm stays as it is: it has no convolution or linear layer of its own before it"


def _warn_of_batchnorm(network: fx.GraphModule) -> None:
    """Name the BatchNorms that stay in a network whose signals are quantized, and what that costs."""
    twice = points.rounded_before(network)
    once = [name for name, _ in layers.batchnorms(network) if name not in twice]
    kinds = (
        (
            once,
            "a factor and a shift per channel when sums are rounded; one rounding, after it, which was measured to "
            "lose less than one on both sides",
        ),
        (twice, "the signal before it has other readers, so there is a rounding on both sides"),
    )
    said = [f"{', '.join(names)} ({cost})" for names, cost in kinds if names]
    if said:
        warnings.warn(f"{NOT_FOLDED}: {'; '.join(said)}", stacklevel=3)


def _warn_of_float(network: nn.Module, reason: str, activations: bool) -> None:
    """Say why signals stay in float though they should not, and name the BatchNorms that do."""
    names = ", ".join(name for name, _ in layers.batchnorms(network))
    if activations:
        unfolded = f"; BatchNorm stays, too: {names}" if names else ""
        warnings.warn(f"signals stay in float, weights alone are quantized: {reason}{unfolded}", stacklevel=3)
    elif names:
        said = f"BatchNorm stays as it is: {reason}" if reason else NOT_FOLDED
        warnings.warn(f"{said}: {names}", stacklevel=3)


def _warn_of_other_layers(network: nn.Module) -> None:
    """Name the layers with parameters that stay in float."""
    others = [
        f"{name} ({type(module).__name__ if type(module) is not nn.Module else 'its weight is used without a call'})"
        for name, module in network.named_modules()
        if not layers.is_weighted(module)
        and not isinstance(module, (*layers.NORMALIZATIONS, *FEW_LEVELS))
        and any(True for _ in module.parameters(recurse=False))
    ]
    if others:
        warnings.warn(f"no call of a convolution or linear layer, stays in float: {', '.join(others)}", stacklevel=3)


@torch.no_grad()
def _sample(model: nn.Module, images: Tensor) -> Tensor:
    """The first images as a batch, after a check that the network accepts them."""
    if len(images) == 0:
        raise ValueError("expected calibration images, got none; 1,024 plain training images are plenty")
    if len(images.shape) != 4:
        raise ValueError(f"expected calibration images (N, C, H, W), got shape {tuple(images.shape)}")
    if images.dtype.is_floating_point:
        check_pixels(images, "calibration images", nan="they hold NaN")
    x, _ = next(data.batches(images, torch.zeros(len(images)), SAMPLE))
    try:
        model(x)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        shape = tuple(images.shape)
        raise ValueError(f"calibration images of shape {shape} do not fit the network: {reason}") from error
    return x


def _observe(network: nn.Module, images: Tensor, batch_size: int, *, histogram: bool) -> dict[str, Range]:
    """Name of a point -> the range of its signal over all images."""
    ranges: dict[str, Range] = {}

    def widen(name: str, signal: Tensor) -> None:
        seen = Range(*(limit.float().view(1) for limit in signal.aminmax()))
        before = ranges.get(name, seen)
        ranges[name] = Range(torch.minimum(seen.minimum, before.minimum), torch.maximum(seen.maximum, before.maximum))

    def count(name: str, signal: Tensor) -> None:
        observed = ranges[name]
        more = observers.histogram_of(signal.reshape(1, -1), observed.magnitude)
        ranges[name] = replace(observed, counts=more if observed.counts is None else observed.counts + more)

    _stream(network, images, batch_size, widen)
    for name, observed in ranges.items():
        if not observed.magnitude.isfinite():
            raise ValueError(f"signal {name} is not finite on the calibration images; no format holds it")
    if histogram:
        _stream(network, images, batch_size, count)
    return ranges


@torch.no_grad()
def _stream(network: nn.Module, images: Tensor, batch_size: int, look: Callable[[str, Tensor], None]) -> None:
    """Run the images through the network and call ``look(name, signal)`` for every signal that is to be quantized."""
    names = [f"quantizers.{name}" for name, _ in network.quantizers.named_children()]
    with layers.watching(network, names, lambda name, _, signal: look(name.removeprefix("quantizers."), signal)):
        for x, _ in data.batches(images, torch.zeros(len(images)), batch_size):
            network(x)
