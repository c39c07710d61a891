"""A network whose normalizations undo a penalty on lengths is named."""

import pytest
import torch
from torch import nn

from rqlib import defenses
from rqlib.defenses import gram
from rqlib.defenses.folded import hidden_layers
from tests.networks import COLOR, narrow


class Branching(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).mean((2, 3))
        return self.last(x) if x.sum() > 0 else -self.last(x)


class ReadTwice(nn.Module):
    """The convolution's output is read by its BatchNorm and by a sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last((x + self.norm(x)).mean((2, 3)))


def before_the_layer() -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), *pooled, nn.Linear(4, 2))


def grouped() -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), *pooled, nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["spectral", *(form for form in gram.FORMS if form != "cosine")])
@pytest.mark.parametrize(
    ("make", "loose"), [(Branching, "norm"), (ReadTwice, "norm"), (before_the_layer, "0"), (grouped, "1")]
)
def test_a_normalization_that_undoes_the_penalty_is_named(make, loose, name):
    with pytest.warns(UserWarning, match=f"'{name}' looks at lengths.*before them: {loose}; choose penalty='cosine'"):
        defenses.penalty(name, make(), COLOR.shape)


@pytest.mark.parametrize("make", [Branching, ReadTwice, before_the_layer])
def test_directions_are_penalized_without_a_word(make):
    defenses.penalty("cosine", make(), COLOR.shape)


@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18", "VGG_16"])
def test_networks_whose_batchnorms_fold_get_no_warning(name):
    model = narrow(name)
    assert not hidden_layers(model).loose
    defenses.penalty("gram_rows", model, COLOR.shape)
