"""What several families share: normalization, scaled channels, convolution and classifier blocks."""

import math
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rqlib.core import layers
from rqlib.core.vocabulary import ImageSpec


class Normalize(nn.Module):
    """(x - mean) / std per channel: x (B, C, H, W) in [0, 1]; the first layer of every network."""

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
    """The parts in order, by name, behind the normalization; initialized."""
    model = named(normalize=Normalize(spec), **parts)
    initialize(model)
    return model


def named(**parts: nn.Module) -> nn.Sequential:
    """A `Sequential` whose layers have names."""
    sequence = nn.Sequential()
    for name, part in parts.items():
        sequence.add_module(name, part)
    return sequence


def initialize(model: nn.Module) -> None:
    """Kaiming normal weights (arXiv 1502.01852) in a network without BatchNorm, whose signal would else die out.

    The last layer keeps torch's small weights, and so does every layer of a network with BatchNorm,
    which rescales each layer's output.
    """
    if any(layers.batchnorms(model)):
        return
    *hidden, _ = (layer for _, layer in layers.weighted_layers(model))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


def scaled(channels: int, width: float) -> int:
    """``round(channels * width)``.

    Raises:
        ValueError: nothing is left.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"expected width > 0, got {width}")
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
    """Convolution, BatchNorm, activation; ``padding=None`` keeps the size at stride 1 (odd kernels)."""
    padding = kernel // 2 if padding is None else padding
    if kernel == 1 and not bias:
        parts = {"conv": pointwise(inputs, outputs, stride)}
    else:
        parts = {"conv": nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)}
    if norm:
        parts["norm"] = nn.BatchNorm2d(outputs)
    if activation:
        parts["activation"] = activation()
    return named(**parts)


def pointwise(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """1x1 convolution without bias; below 16 channels the stride is taken before it, with the same result.

    On AVX-512 and channels_last torch 2.13 writes the weight gradient of a strided 1x1 convolution of fewer
    than 16 channels out of bounds where the threads do not divide the batch: the process crashes.
    """
    if stride == 1 or inputs >= 16:
        return nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(nn.MaxPool2d(1, stride), nn.Conv2d(inputs, outputs, 1, bias=False))


def classifier(sizes: list[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Flatten, then linear layers of these sizes with ReLU (and dropout) between."""
    parts = {"flatten": nn.Flatten()}
    for index, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        parts[f"linear{index}"] = nn.Linear(inputs, outputs)
        if index < len(sizes) - 1:
            parts[f"relu{index}"] = nn.ReLU()
            parts[f"dropout{index}"] = nn.Dropout(dropout)
    return named(**parts)


def pooled_classifier(channels: int, spec: ImageSpec) -> nn.Sequential:
    """Mean over the image, then one linear layer."""
    return named(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, spec.num_classes))


def flat_features(features: nn.Module, spec: ImageSpec) -> int:
    """How many numbers the features of one image of ``spec`` are; nothing is computed but shapes.

    Raises:
        ValueError: the image is too small to pass all strides and pools; the smallest side is named.
    """
    try:
        return _dry_run(features, *spec.shape)
    except RuntimeError as error:
        side = next(side for side in range(1, 512) if _passes(features, spec.channels, side))
        raise ValueError(f"expected images of at least {side}x{side}, got {spec.height}x{spec.width}") from error


@torch.no_grad()
def _dry_run(features: nn.Module, *shape: int) -> int:
    tensors = {name: t.to("meta") for name, t in chain(features.named_parameters(), features.named_buffers())}
    return functional_call(features, tensors, torch.empty(2, *shape, device="meta")).flatten(1).shape[1]


def _passes(features: nn.Module, channels: int, side: int) -> bool:
    try:
        return _dry_run(features, channels, side, side) > 0
    except RuntimeError:
        return False
