"""What several families of networks share: normalization, scaled channels, blocks of convolutions, classifiers."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from rqlib.core import layers, runtime
from rqlib.core.vocabulary import ImageSpec


class Normalize(nn.Module):
    """(x - mean) / std in each channel, for x (B, C, H, W) in [0, 1]: the first layer of every network."""

    def __init__(self, spec: ImageSpec):
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """activation(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def network(spec: ImageSpec, **parts: nn.Module) -> nn.Sequential:
    """A network: the normalization, then the named parts in order, with initialized weights."""
    model = sequence(normalize=Normalize(spec), **parts)
    initialize(model)
    return model


def sequence(**parts: nn.Module) -> nn.Sequential:
    """A `Sequential` whose layers have names."""
    sequence = nn.Sequential()
    for name, part in parts.items():
        sequence.add_module(name, part)
    return sequence


def initialize(model: nn.Module) -> None:
    """Give a network without BatchNorm Kaiming normal weights (arXiv 1502.01852), in place.

    With torch's small weights, which the last layer keeps, the signal would die out from layer to layer.
    """
    if any(layers.batchnorms(model)):
        return
    *hidden, _ = (layer for _, layer in layers.weighted_layers(model))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


def scaled(channels: int, width: float) -> int:
    """The number of channels at this width: ``round(channels * width)``.

    Raises:
        ValueError: the width is not positive, or leaves no channels.
    """
    if not (isinstance(width, int | float) and math.isfinite(width) and width > 0):
        raise ValueError(f"expected width > 0, got {width!r}")
    result = round(channels * width)
    if result < 1:
        raise ValueError(f"width {width} leaves 0 channels of {channels}; use at least {1 / channels:.2g}")
    return result


def convolution(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
    norm: bool = True,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, BatchNorm, activation; ``padding=None`` pads odd kernels so that stride 1 keeps the image size."""
    padding = kernel // 2 if padding is None else padding
    if kernel == 1 and not bias:
        parts = {"conv": pointwise(inputs, outputs, stride)}
    else:
        parts = {"conv": nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)}
    if norm:
        parts["norm"] = nn.BatchNorm2d(outputs)
    if activation:
        parts["activation"] = activation()
    return sequence(**parts)


def pointwise(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """1x1 convolution without bias; with fewer than 16 channels a pool takes the stride first, with the same result.

    This avoids a crash: on AVX-512 and in channels_last memory torch 2.13 writes the weight gradient of a
    strided 1x1 convolution of fewer than 16 channels out of bounds, if the threads do not divide the batch.
    """
    if stride == 1 or inputs >= 16:
        return nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(nn.MaxPool2d(1, stride), nn.Conv2d(inputs, outputs, 1, bias=False))


def classifier(sizes: list[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Flatten, then linear layers of these sizes with ReLU and dropout between them."""
    parts = {"flatten": nn.Flatten()}
    for index, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        parts[f"linear{index}"] = nn.Linear(inputs, outputs)
        if index < len(sizes) - 1:
            parts[f"relu{index}"] = nn.ReLU()
            parts[f"dropout{index}"] = nn.Dropout(dropout)
    return sequence(**parts)


def pooled_classifier(channels: int, spec: ImageSpec) -> nn.Sequential:
    """Mean over the image, then one linear layer."""
    return sequence(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, spec.num_classes))


def flat_features(features: nn.Module, spec: ImageSpec) -> int:
    """The number of features of one image of ``spec``.

    Raises:
        ValueError: the image is too small for the strides and pools; the message says the smallest side that fits.
    """
    try:
        return _dry_run(features, *spec.shape)
    except RuntimeError as error:
        side = next(side for side in range(1, 512) if _passes(features, spec.channels, side))
        raise ValueError(f"expected images of at least {side}x{side}, got {spec.height}x{spec.width}") from error


@torch.no_grad()
def _dry_run(features: nn.Module, *shape: int) -> int:
    """The number of features of one image of this shape, found by a pass on zeros.

    The meta device would compute shapes alone, but there torch first loads its compiler, which takes longer.
    """
    device = next(features.parameters()).device
    with runtime.evaluating(features):
        return features(torch.zeros(1, *shape, device=device)).flatten(1).shape[1]


def _passes(features: nn.Module, channels: int, side: int) -> bool:
    try:
        return _dry_run(features, channels, side, side) > 0
    except RuntimeError:
        return False
