"""Channels pass whatever maps each of them to itself; what is removed changes no logit, in float64."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rqlib import models
from rqlib.core import parametrizations, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.pruning import channels, masks
from tests.pruning import odd

IMAGE = torch.zeros(1, 3, 16, 16)


def prepared(make) -> nn.Module:
    """The network in float64 and eval mode, with BatchNorms that have something to hide."""
    runtime.seed_everything(0)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def shrunk(model: nn.Module, image: torch.Tensor = IMAGE) -> tuple[nn.Module, float, list[str]]:
    """Half of the channels removed: the network, the share of its parameters that is left, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        masked = masks.apply_masks(model, masks.magnitude_masks(model, 0.5, structure="filters", image=image))
    plain = parametrizations.bake(masked)
    removed = channels.remove(plain, image)
    x = torch.rand(5, *image.shape[1:], dtype=next(model.parameters()).dtype)
    torch.testing.assert_close(removed(x), masked(x), rtol=1e-9, atol=1e-9)
    assert not torch.equal(masked(x), model(x))
    return removed, size(removed) / size(model), [str(one.message) for one in said]


def gelu_and_dropout() -> nn.Module:
    return nn.Sequential(nn.GELU(), nn.Dropout2d(0.5), nn.Dropout(0.1), nn.Identity())


PASSING = {
    **{kind.__name__: lambda kind=kind: odd.chain(kind()) for kind in (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU)},
    **{kind.__name__: lambda kind=kind: odd.chain(kind()) for kind in (nn.Hardswish, nn.ELU, nn.Tanh, nn.Mish)},
    **{kind.__name__: lambda kind=kind: odd.chain(kind()) for kind in (nn.SELU, nn.CELU, nn.Softsign, nn.RReLU)},
    **{kind.__name__: lambda kind=kind: odd.chain(kind()) for kind in (nn.Hardtanh, nn.Tanhshrink)},
    **{kind.__name__: lambda kind=kind: odd.chain(kind()) for kind in (nn.PReLU, nn.Dropout2d, gelu_and_dropout)},
    "small threshold": lambda: odd.chain(nn.Softshrink(0.01)),
    "large threshold": lambda: odd.Between(lambda x: F.hardshrink(40 * x, 9.0)),
    "one slope per channel": lambda: odd.Between(nn.PReLU(12)),
    "own slopes": lambda: odd.Between(odd.OwnSlopes(12)),
    "InstanceNorm": lambda: odd.Between(nn.InstanceNorm2d(12, affine=True)),
    "InstanceNorm with statistics": lambda: odd.Between(nn.InstanceNorm2d(12, track_running_stats=True)),
    "BatchNorm": lambda: odd.chain(nn.ReLU(), norm=True),
    "pooling": lambda: odd.Between(lambda x: F.max_pool2d(F.avg_pool2d(x, 3, 1, 1), 2)),
    "upsampling": lambda: odd.Between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "zero padding": lambda: odd.Between(lambda x: F.pad(F.relu(x), (1, 2, 1, 0)), padding=0),
    "functional": lambda: odd.Between(lambda x: F.leaky_relu(x, 0.1)),
    "method": lambda: odd.Between(lambda x: x.relu().clamp(max=0.5)),
    "in place": lambda: odd.Between(lambda x: F.silu(x, inplace=True).mul_(2)),
    "arithmetic": lambda: odd.Between(lambda x: x * torch.sigmoid(1.7 * x) - 0.1 * x.abs()),
    "power": lambda: odd.Between(lambda x: torch.where(x > 0, x, 0.01 * x**3)),
    "permuted": lambda: odd.Between(lambda x: F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "gates": odd.Gated,
    "excited": odd.Excited,
    "repeated": odd.Repeated,
    "perceptron": odd.perceptron,
    "three dimensions": odd.in_three_dimensions,
    "depthwise, two for each": lambda: odd.Between(
        nn.Sequential(nn.Conv2d(12, 24, 3, groups=12), nn.Conv2d(24, 12, 1))
    ),
    "dense": odd.Dense,
    "tokens": odd.Tokens,
    "tied": odd.Tied,
    "two names": odd.TwoNames,
    "softmax of logits": odd.Returning,
}


@pytest.mark.parametrize("make", PASSING.values(), ids=PASSING)
def test_half_is_removed_without_a_word(make):
    removed, left, said = shrunk(prepared(make))
    assert left < 0.75
    assert not said


FOLDED = {
    "sigmoid": lambda: odd.chain(nn.Sigmoid(), padding=0),
    "softplus before a linear layer": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    ),
    "constants at the border": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(512, 10)
    ),
    "circular": lambda: nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.Hardsigmoid(), nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular", bias=False)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)),
    ),
    "shifts": lambda: odd.Between(odd.OwnSlopes(12, shift=0.3), padding=0),
    "BatchNorm without weights": lambda: odd.Between(nn.BatchNorm2d(12, affine=False), padding=0),
}


@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED)
def test_constants_become_part_of_the_next_bias(make):
    removed, left, said = shrunk(prepared(make))
    assert left < 0.65
    assert not said


BLOCKED = {
    "sigmoid before zeros": (lambda: odd.chain(nn.Sigmoid()), "12 of 32 channels stay: 12 because of Sigmoid, after"),
    "groups": (
        lambda: odd.Between(nn.Conv2d(12, 12, 3, groups=3)),
        "24 of 44 channels stay: 24 because of grouped convolution",
    ),
    "GroupNorm": (lambda: odd.Between(nn.GroupNorm(3, 12)), "12 of 32 channels stay: 12 because of GroupNorm"),
    "transposed": (lambda: odd.Between(nn.ConvTranspose2d(12, 12, 2, 2)), "12 of 32 .* because of ConvTranspose2d"),
    "neighbors": (lambda: odd.Between(nn.LocalResponseNorm(3)), "12 of 32 .* because of LocalResponseNorm"),
    "fixed factors": (lambda: odd.Between(lambda x: x * torch.ones(12, 1, 1)), "12 of 32 .* with channels that stay"),
    "mean of channels": (lambda: odd.Between(lambda x: x * x.mean(1, keepdim=True)), "12 of 32 .* because of mean"),
    "softmax": (lambda: odd.Between(lambda x: x.softmax(1)), "12 of 32 channels stay: 12 because of softmax"),
    "slices": (lambda: odd.Between(lambda x: torch.cat([x[:, 6:], x[:, :6]], 1)), "12 of 32 .* because of getitem"),
    "written size": (lambda: odd.Between(lambda x: x.view(-1, 12, 256).view(-1, 12, 16, 16)), "12 of 32 .* of reshape"),
    "shuffled": (odd.Shuffled, "12 of 34 channels stay: 8 because of chunk, 4 because of reshape"),
    "padded channels": (odd.Padded, "4 of 24 channels stay: 4 because of an operation with channels that stay"),
}


@pytest.mark.parametrize(("make", "words"), BLOCKED.values(), ids=BLOCKED)
def test_one_warning_counts_the_channels_that_stay(make, words):
    removed, left, texts = shrunk(prepared(make))
    assert left < 0.95
    (said,) = (text for text in texts if text.startswith("structure filters: "))
    assert re.search(words, said), said


TORCHVISION = {"mobilenet_v3_small": 0.35, "resnet18": 0.3, "densenet121": 0.3, "shufflenet_v2_x0_5": 0.65}


@pytest.mark.filterwarnings("ignore:structure filters")
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision_become_smaller_and_keep_their_logits(name):
    model = prepared(lambda: models.build(f"torchvision:{name}", ImageSpec()))
    removed, left, said = shrunk(model, torch.zeros(1, 3, 32, 32))
    assert left < TORCHVISION[name]
    assert bool(said) == name.startswith("shufflenet")


def test_removal_leaves_what_is_shared_shared():
    removed, _, _ = shrunk(prepared(odd.Tied))
    assert removed.one.weight is removed.other.weight
    assert removed.one.weight.shape == (4, 4, 3, 3)
    assert removed.twice.weight.shape == (6, 6)
    removed, _, _ = shrunk(prepared(odd.TwoNames))
    assert removed.stem is removed.features[0]


class Elsewhere(nn.Module):
    """A convolution's weight that the forward pass reads once more."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 10)

    def forward(self, x):
        x = self.second(F.relu(self.first(x))) * self.second.weight.norm()
        return self.head(F.relu(x).mean((2, 3)))


def mixed_up(between: nn.Module) -> nn.Module:
    """All channels of the convolutions are mixed."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_a_weight_that_is_read_elsewhere_keeps_its_channels():
    with pytest.raises(
        ValueError, match="found none: 14 of 24 channels stay: 14 because of a weight that is used elsewhere"
    ):
        shrunk(prepared(Elsewhere))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mixed_up(nn.GroupNorm(2, 8)), "8 of 18 channels stay: 8 because of GroupNorm; take structure weights"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 10)),
            "all of them are those of the image or of the logits",
        ),
    ],
)
def test_where_nothing_can_be_removed_an_error_says_why(make, words):
    model = prepared(make)
    with pytest.raises(ValueError, match=f"Sequential: expected channels that can be removed, found none: .*{words}"):
        masks.magnitude_masks(model, 0.5, structure="filters", image=IMAGE)
    with pytest.raises(ValueError, match=words):
        channels.remove(model, IMAGE)
