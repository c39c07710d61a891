"""A derived network that computes something else is refused, and the layer is named."""

import copy

import pytest
import torch
from torch import nn

from rqlib.core import derived, layers
from tests import networks

X = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(*parts).eval()


@pytest.mark.parametrize("name", ["ResNet_18", "VGG_16", "MobileNetV2", "WRN_28_10", "Inception_BN", "AlexNet_BN"])
def test_folded_and_traced_families_pass(name):
    model, x = networks.narrow(name), torch.rand(4, 3, 32, 32)
    derived.check(model, layers.fold_batchnorm(model), x, what="folding BatchNorm")
    assert type(derived.traced(model, x)).__name__ == type(model).__name__


class First(nn.Module):
    """Normalizes by the batch: right for one batch size, wrong for another."""

    def __init__(self, network, size):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x):
        return self.network(x) * (len(x) / self.size)


def test_a_difference_at_another_batch_size_is_found():
    model = network()
    with pytest.raises(derived.NotEqual, match=r"lowering changes what Sequential computes: the logits of 2 images"):
        derived.check(model, First(model, len(X)), X, what="lowering")
    with pytest.raises(derived.NotEqual, match="the logits of 6 images differ by 2 of their length"):
        derived.check(model, First(model, 2), X, what="lowering")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_enough(count):
    derived.check(model := network(), copy.deepcopy(model), X[:count], what="copying")


def test_the_first_layer_that_differs_is_named():
    model = network()
    folded = layers.fold_batchnorm(model)
    folded[3] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU())
    derived.check(model, folded, X, what="folding")
    wrong = copy.deepcopy(folded)
    wrong[0].bias.data += 1
    with pytest.raises(derived.NotEqual, match="the first layer whose output differs is 1$"):
        derived.check(model, wrong, X, what="folding")
    wrong = copy.deepcopy(folded)
    wrong[2].forward = lambda x: x
    with pytest.raises(derived.NotEqual, match="the first layer whose output differs is 2$"):
        derived.check(model, wrong, X, what="folding")

    class Twice(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(derived.NotEqual, match="all layers up to 5 agree, what follows differs$"):
        derived.check(model, Twice(*copy.deepcopy(model)), X, what="copying")


def test_modes_and_random_numbers_stay_and_noise_is_the_same_for_both():
    model = network().append(nn.Dropout()).train()
    before = torch.get_rng_state()
    derived.check(model, copy.deepcopy(model), X, what="copying")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.training for part in model.modules())

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return self.network(x + torch.randn_like(x))

    derived.check(noisy := Noisy(), copy.deepcopy(noisy), X, what="copying")


def test_values_that_are_not_finite_must_agree():
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0

    derived.check(Broken(), Broken(), X, what="copying")
    with pytest.raises(derived.NotEqual, match="differ by inf"):
        derived.check(nn.Flatten(), Broken(), X, what="copying")
    with pytest.raises(derived.NotEqual, match="differ by inf"):
        derived.check(nn.Flatten(), nn.Flatten(2), X, what="copying")
