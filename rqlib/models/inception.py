"""GoogLeNet with BatchNorm for small images (arXiv 1409.4842, 1502.03167)."""

import torch
from torch import Tensor, nn

from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import convolution, network, scaled, sequence

# name: (1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, after the pool)
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = ("4a", "5a")


class Inception(nn.Module):
    """Four branches over the same input, concatenated: 1x1, 3x3, 5x5, and 1x1 after a 3x3 max-pool."""

    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int):
        super().__init__()
        self.one = convolution(inputs, one, 1)
        self.three = nn.Sequential(convolution(inputs, reduce3, 1), convolution(reduce3, three, 3))
        self.five = nn.Sequential(convolution(inputs, reduce5, 1), convolution(reduce5, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(inputs, pooled, 1))
        self.outputs = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


def inception_bn(spec: ImageSpec, width: float = 1.0) -> nn.Sequential:
    """Two conv3 64 without BatchNorm, nine Inception modules, MP3s2 before 4a and 5a, mean, 1x1 convolution to K."""
    channels = scaled(64, width)
    parts = {
        "conv1": convolution(spec.channels, channels, bias=True, norm=False),
        "conv2": convolution(channels, channels, bias=True, norm=False),
    }
    for name, branches in MODULES.items():
        if name in POOL_BEFORE:
            parts[f"pool{name[0]}"] = nn.MaxPool2d(3, stride=2, padding=1)
        module = Inception(channels, *(scaled(branch, width) for branch in branches))
        parts[f"inception{name}"], channels = module, module.outputs
    head = sequence(pool=nn.AdaptiveAvgPool2d(1), conv=nn.Conv2d(channels, spec.num_classes, 1), flatten=nn.Flatten())
    return network(spec, **parts, classifier=head)
