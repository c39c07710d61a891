"""Small networks: HYDRA's two (arXiv 2002.10509), LeNet, and the small CNN of the defense study."""

from torch import nn

from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import classifier, convolution, flat_features, network, scaled


def cnn_small(spec: ImageSpec, width: float = 1.0) -> nn.Sequential:
    """Convolutions to 16 and 32 channels, both 4x4 of stride 2; FC 100, K."""
    return _plain(spec, width, convolutions=((16, 4, 2), (32, 4, 2)), hidden=(100,))


def cnn_large(spec: ImageSpec, width: float = 1.0) -> nn.Sequential:
    """Convolutions to 32 (3x3), 32 (4x4, stride 2), 64 (3x3), 64 (4x4, stride 2) channels; FC 512, 512, K."""
    return _plain(spec, width, convolutions=((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)), hidden=(512, 512))


def lenet(spec: ImageSpec, width: float = 1.0) -> nn.Sequential:
    """5x5 convolutions to 20 and 50 channels, each with MP2, no ReLU; FC 500, K (LeCun et al., Proc. IEEE 1998)."""
    c1, c2, hidden = scaled(20, width), scaled(50, width), scaled(500, width)
    features = nn.Sequential(
        nn.Conv2d(spec.channels, c1, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(c1, c2, 5),
        nn.MaxPool2d(2),
    )
    sizes = [flat_features(features, spec), hidden, spec.num_classes]
    return network(spec, features=features, classifier=classifier(sizes))


def small_cnn(spec: ImageSpec, width: float = 1.0) -> nn.Sequential:
    """5x5 convolutions to 6 channels (padding 2) and 16, each with BatchNorm, ReLU and a 2x2 mean; FC 120, 84, K."""
    c1, c2, f1, f2 = (scaled(channels, width) for channels in (6, 16, 120, 84))
    features = nn.Sequential(
        convolution(spec.channels, c1, 5, bias=True),
        nn.AvgPool2d(2),
        convolution(c1, c2, 5, padding=0, bias=True),
        nn.AvgPool2d(2),
    )
    sizes = [flat_features(features, spec), f1, f2, spec.num_classes]
    return network(spec, features=features, classifier=classifier(sizes))


def _plain(spec: ImageSpec, width: float, convolutions: tuple, hidden: tuple) -> nn.Sequential:
    """Convolutions, each given as (channels, kernel, stride), with padding 1 and ReLU; then linear layers."""
    features, inputs = nn.Sequential(), spec.channels
    for channels, kernel, stride in convolutions:
        outputs = scaled(channels, width)
        features.append(convolution(inputs, outputs, kernel, stride=stride, padding=1, bias=True, norm=False))
        inputs = outputs
    sizes = [flat_features(features, spec), *(scaled(size, width) for size in hidden), spec.num_classes]
    return network(spec, features=features, classifier=classifier(sizes))
