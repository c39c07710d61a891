"""AlexNet for small images: five convolutions, three linear layers (Krizhevsky et al., NIPS 2012)."""

from torch import nn

from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import classifier, convolution, flat_features, network, scaled


def alexnet(spec: ImageSpec, width: float = 1.0, *, norm: bool = False, dropout: float = 0.5) -> nn.Sequential:
    """conv3 32, MP2, 64, MP2, 128, 256, 256, MP3s2; FC 1024, 512, K. ``norm`` adds BatchNorm after convolutions."""
    c1, c2, c3, c4, c5, f1, f2 = (scaled(channels, width) for channels in (32, 64, 128, 256, 256, 1024, 512))
    features = nn.Sequential(
        convolution(spec.channels, c1, bias=True, norm=norm),
        nn.MaxPool2d(2),
        convolution(c1, c2, bias=True, norm=norm),
        nn.MaxPool2d(2),
        convolution(c2, c3, bias=True, norm=norm),
        convolution(c3, c4, bias=True, norm=norm),
        convolution(c4, c5, bias=True, norm=norm),
        nn.MaxPool2d(3, stride=2),
    )
    sizes = [flat_features(features, spec), f1, f2, spec.num_classes]
    return network(spec, features=features, classifier=classifier(sizes, dropout=dropout))
