"""MobileNetV2 for small images: inverted residuals, linear bottlenecks (arXiv 1801.04381)."""

from torch import nn

from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import Residual, convolution, network, pooled_classifier, scaled

# expansion, channels, repeats, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1))


def mobilenet_v2(spec: ImageSpec, width: float = 1.0) -> nn.Sequential:
    """A 1x1 convolution (padding 1) to 32 channels, seven stages, a 1x1 convolution to 1280, mean, FC K."""
    inputs, last = scaled(32, width), scaled(1280, width)
    parts = {"stem": convolution(spec.channels, inputs, 1, padding=1, bias=True, activation=nn.ReLU6)}
    for index, (expansion, channels, repeats, stride) in enumerate(STAGES, start=1):
        stage, outputs = nn.Sequential(), scaled(channels, width)
        for repeat in range(repeats):
            stage.append(_bottleneck(inputs, outputs, expansion, stride if repeat == 0 else 1))
            inputs = outputs
        parts[f"stage{index}"] = stage
    head = convolution(inputs, last, 1, bias=True, activation=nn.ReLU6)
    return network(spec, **parts, head=head, classifier=pooled_classifier(last, spec))


def _bottleneck(inputs: int, outputs: int, expansion: int, stride: int) -> nn.Module:
    """1x1 to more channels, 3x3 depthwise, 1x1 to fewer without activation; a shortcut if the shape stays the same."""
    hidden = inputs * expansion
    body = nn.Sequential(
        convolution(inputs, hidden, 1, bias=True, activation=nn.ReLU6),
        convolution(hidden, hidden, 3, stride=stride, groups=hidden, bias=True, activation=nn.ReLU6),
        convolution(hidden, outputs, 1, bias=True, activation=None),
    )
    return Residual(body, nn.Identity(), nn.Identity()) if stride == 1 and inputs == outputs else body
