import pytest
import torch
from torch import nn

from rqlib import models
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import last_layer

SPEC = ImageSpec(3, 32, 32, 10)
X = torch.rand(4, 3, 32, 32)


def network(name: str, width: float = 0.25) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, SPEC, width=width)


@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18", "MobileNetV2", "AlexNet", "Inception_BN"])
def test_the_classifier_times_the_features_gives_the_logits(name):
    model = network(name).eval()
    name, weight = last_layer.classifier(model, X)
    layer = model.get_submodule(name)
    assert torch.equal(weight, layer.weight.flatten(1))
    assert weight.shape[0] == 10
    features = last_layer.features(model, X, batch_size=3)
    logits = model(X)
    assert torch.allclose(features @ weight.T + layer.bias, logits, atol=1e-4)


def test_a_1x1_convolution_counts_and_features_are_means_over_positions():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=8), nn.ReLU())
    model = nn.Sequential(body, nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    name, weight = last_layer.classifier(model, X)
    assert name == "1"
    assert weight.shape == (5, 6)
    assert torch.allclose(last_layer.features(model, X), body(X).mean((2, 3)), atol=1e-6)


def test_the_layer_called_last_counts_not_the_one_defined_last():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Linear(7, 4), nn.Linear(3 * 32 * 32, 7)

        def forward(self, x):
            return self.head(self.stem(x.flatten(1)))

    assert last_layer.classifier(Swapped(), X)[0] == "head"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()], "linear or a 1x1 conv.*'0', Conv2d"),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], "linear or a 1x1 conv.*got none"),
        ([nn.Flatten(), nn.Linear(3072, 1)], "at least 2 classes, got 1"),
        ([nn.Flatten(), nn.Linear(3072, 6), nn.GLU()], "gives its 3 logits, got '1'"),
        ([nn.Flatten(), nn.Linear(100, 10)], r"shape \(3, 32, 32\) do not fit"),
        ([nn.Conv2d(3, 10, 1)], r"logits \(4, K\) from the network, got \(4, 10, 32, 32\)"),
    ],
)
def test_errors(parts, words):
    with pytest.raises(ValueError, match=words):
        last_layer.classifier(nn.Sequential(*parts), X)
    with pytest.raises(ValueError, match="at least one image, got none"):
        last_layer.features(nn.Sequential(*parts), X[:0])
