"""Residual networks for small images (arXiv 1512.03385): basic blocks and bottlenecks."""

from collections.abc import Callable, Sequence

from torch import nn

from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import Residual, convolution, network, pooled_classifier, scaled


def basic(inputs: int, channels: int, stride: int) -> tuple[nn.Module, int]:
    """Two 3x3 convolutions; the block and its number of output channels."""
    body = nn.Sequential(
        convolution(inputs, channels, stride=stride),
        convolution(channels, channels, activation=None),
    )
    return _residual(body, inputs, channels, stride), channels


def bottleneck(inputs: int, channels: int, stride: int) -> tuple[nn.Module, int]:
    """1x1, 3x3 (strided), 1x1 to four times the channels; the block and its number of output channels."""
    body = nn.Sequential(
        convolution(inputs, channels, 1),
        convolution(channels, channels, stride=stride),
        convolution(channels, 4 * channels, 1, activation=None),
    )
    return _residual(body, inputs, 4 * channels, stride), 4 * channels


def resnet(
    spec: ImageSpec, width: float = 1.0, *, depths: Sequence[int], block: Callable[[int, int, int], tuple] = basic
) -> nn.Sequential:
    """A 3x3 convolution to 64 channels, four stages of ``depths`` blocks on 64, 128, 256, 512, mean, FC K."""
    inputs = scaled(64, width)
    parts = {"stem": convolution(spec.channels, inputs)}
    for index, depth in enumerate(depths):
        stage = parts[f"stage{index + 1}"] = nn.Sequential()
        for repeat in range(depth):
            stride = 2 if index > 0 and repeat == 0 else 1
            module, inputs = block(inputs, scaled(64 * 2**index, width), stride)
            stage.append(module)
    return network(spec, **parts, classifier=pooled_classifier(inputs, spec))


def _residual(body: nn.Module, inputs: int, outputs: int, stride: int) -> Residual:
    """The shortcut is the identity if the shape stays the same, else a strided 1x1 convolution with BatchNorm."""
    same = stride == 1 and inputs == outputs
    shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride=stride, activation=None)
    return Residual(body, shortcut, nn.ReLU())
