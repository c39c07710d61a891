import pytest
import torch
from torch import nn

from rqlib import models
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import features as generator_features

SPEC = ImageSpec(3, 32, 32, 10)
X = torch.rand(4, 3, 32, 32)


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def network(name: str, width: float = 0.25) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, SPEC, width=width)


@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18", "MobileNetV2", "AlexNet", "Inception_BN"])
def test_the_classifier_times_the_features_gives_the_logits(name):
    model = network(name).eval()
    found = generator_features.classifier(model, X)
    layer = model.get_submodule(found.name)
    assert torch.equal(found.weight, layer.weight.flatten(1))
    assert found.weight.shape[0] == 10
    features = generator_features.features(model, X, batch_size=3)
    logits = model(X)
    assert torch.allclose(features @ found.weight.T + layer.bias, logits, atol=1e-4)


def test_a_1x1_convolution_counts_and_features_are_means_over_positions():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=8), nn.ReLU())
    model = nn.Sequential(body, nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = generator_features.classifier(model, X)
    assert found.name == "1"
    assert found.weight.shape == (5, 6)
    assert torch.allclose(generator_features.features(model, X), body(X).mean((2, 3)), atol=1e-6)


def test_the_layer_called_last_counts_not_the_one_defined_last():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Linear(7, 4), nn.Linear(3 * 32 * 32, 7)

        def forward(self, x):
            return self.head(self.stem(x.flatten(1)))

    assert generator_features.classifier(Swapped(), X).name == "head"


def test_modes_and_hooks_are_as_before():
    model = network("SmallCNN").train()
    generator_features.features(model, X)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "linear or a 1x1 conv.*'0', Conv2d",
        ),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "linear or a 1x1 convolution.*got none"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 1)), "at least 2 classes, got 1"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 6), nn.GLU()), "gives its 3 logits, got '1'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 10)), r"images of shape \(3, 32, 32\) do not fit"),
        (nn.Conv2d(3, 10, 1), r"logits \(4, K\) from the network, got \(4, 10, 32, 32\)"),
    ],
)
def test_networks_without_such_a_layer_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        generator_features.classifier(model, X)


def test_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        generator_features.features(network("SmallCNN"), X[:0])
