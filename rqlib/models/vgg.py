"""VGG with BatchNorm: blocks of 3x3 convolutions, then linear layers (arXiv 1409.1556)."""

from collections.abc import Sequence

from torch import nn

from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import classifier, convolution, flat_features, network, scaled

CHANNELS = (64, 128, 256, 512, 512)


def vgg(spec: ImageSpec, width: float = 1.0, *, depths: Sequence[int], dropout: float = 0.5) -> nn.Sequential:
    """Five blocks of ``depths`` convolutions with MP2 after each block; FC 4096, 4096, K.

    The last pool keeps a single pixel as it is, so that images of 16 to 31 pixels fit too.
    """
    features = _convolutions(spec, width, depths, bias=True)
    features.append(nn.MaxPool2d(2, ceil_mode=True))
    hidden = scaled(4096, width)
    sizes = [flat_features(features, spec), hidden, hidden, spec.num_classes]
    return network(spec, features=features, classifier=classifier(sizes, dropout=dropout))


def hydra_vgg(spec: ImageSpec, width: float = 1.0) -> nn.Sequential:
    """HYDRA's VGG-16 (arXiv 2002.10509): after the fifth block a mean onto 2x2 instead of a pool; FC 256, 256, K."""
    features = _convolutions(spec, width, (2, 2, 3, 3, 3), bias=False)
    features.append(nn.AdaptiveAvgPool2d(2))
    hidden = scaled(256, width)
    sizes = [flat_features(features, spec), hidden, hidden, spec.num_classes]
    return network(spec, features=features, classifier=classifier(sizes))


def _convolutions(spec: ImageSpec, width: float, depths: Sequence[int], bias: bool) -> nn.Sequential:
    """The five blocks, with MP2 between them."""
    features, inputs = nn.Sequential(), spec.channels
    for block, (channels, depth) in enumerate(zip(CHANNELS, depths, strict=True)):
        if block:
            features.append(nn.MaxPool2d(2))
        for _ in range(depth):
            features.append(convolution(inputs, inputs := scaled(channels, width), bias=bias))
    return features
