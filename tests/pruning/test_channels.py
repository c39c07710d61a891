"""Channels that belong together, and networks without those that are 0: the same logits, fewer parameters."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib import models
from rqlib.core import parametrizations
from rqlib.measures import cost
from rqlib.pruning import channels, masks
from tests.networks import COLOR, IMAGE, narrow

X = torch.rand(3, *COLOR.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", models.MODELS)
@torch.no_grad()
def test_half_of_the_channels_removed_from_every_network(name):
    model = narrow(name)
    masked = masks.apply_masks(model, masks.filter_masks(model, 0.5, IMAGE))
    removed = channels.remove(parametrizations.bake(masked), IMAGE)
    assert_close(removed(X), masked(X))
    assert not torch.equal(masked(X), model(X))
    before, after = (cost.totals(cost.profile(network, COLOR)) for network in (model, removed))
    assert after["params"] < 0.36 * before["params"]
    assert after["macs"] < 0.45 * before["macs"]
    assert sum(p.numel() for p in removed.parameters()) == after["params"]


def test_nothing_is_removed_from_a_dense_network():
    model = narrow("ResNet_18")
    removed = channels.remove(model, IMAGE)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in removed.state_dict().items())


def test_a_residual_stream_is_one_pool_and_inner_channels_are_another():
    model = narrow("ResNet_18")
    found = channels.find(model, IMAGE)
    stream = found.writes["stem.conv"]
    assert torch.equal(stream, found.writes["stage1.0.body.1.conv"])
    assert torch.equal(stream, found.writes["stage1.1.body.1.norm"])
    assert torch.equal(stream, found.reads["stage1.1.body.0.conv"])
    assert not torch.equal(stream, found.writes["stage1.0.body.0.conv"])
    assert found.fixed[found.writes["classifier.linear"]].all()
    assert found.fixed[found.reads["stem.conv"]].all()


def test_a_depthwise_convolution_passes_its_channels_on():
    found = channels.find(narrow("MobileNetV2"), IMAGE)
    up, depthwise = (found.writes[f"stage2.0.{index}.conv"] for index in (0, 1))
    assert torch.equal(up, depthwise)


def test_branches_are_concatenated():
    found = channels.find(narrow("Inception_BN"), IMAGE)
    branches = ["one.conv", "three.1.conv", "five.1.conv", "pooled.1.conv"]
    written = torch.cat([found.writes[f"inception3a.{branch}"] for branch in branches])
    assert torch.equal(found.reads["inception3b.one.conv"], written)


def test_a_flattened_channel_is_read_once_a_pixel():
    found = channels.find(narrow("SmallCNN"), IMAGE)
    assert torch.equal(found.reads["classifier.linear1"], found.writes["features.2.conv"].repeat_interleave(36))


class Odd(nn.Module):
    """Operations of which nothing is known, a layer called twice, a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.grouped, self.last = nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 6, 1)
        self.sigmoid, self.head = nn.Conv2d(6, 5, 1), nn.Linear(5, 10)

    def forward(self, x):
        x = self.grouped(self.twice(self.twice(self.first(x))))
        return self.head(torch.sigmoid(self.sigmoid(self.last(x))).mean((2, 3)))


@torch.no_grad()
def test_what_is_not_understood_stays():
    torch.manual_seed(0)
    model = Odd()
    found = channels.find(model, IMAGE)
    (pool,) = found.pools()
    assert sorted(pool.tolist()) == sorted(found.writes["last"].tolist())
    masked = masks.apply_masks(model, masks.filter_masks(model, 0.5, IMAGE))
    removed = channels.remove(parametrizations.bake(masked), IMAGE)
    assert removed.last.out_channels == removed.sigmoid.in_channels == 3
    assert removed.twice.out_channels == 4
    assert_close(removed(X), masked(X))


@torch.no_grad()
def test_of_a_layer_that_is_all_0_one_channel_stays():
    model = narrow("CNN_small")
    model.features[0].conv.weight.zero_()
    model.features[0].conv.bias.zero_()
    removed = channels.remove(model, IMAGE)
    assert removed.features[0].conv.out_channels == 1
    assert_close(removed(X), model(X))


@torch.no_grad()
def test_a_channel_with_a_bias_stays():
    model = narrow("ResNet_18")
    model.stem.conv.weight.zero_()
    assert channels.remove(model, IMAGE).stem.conv.out_channels == 8


def test_a_network_that_cannot_be_traced_is_named():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="cannot trace Branching"):
        channels.find(Branching(), IMAGE)
