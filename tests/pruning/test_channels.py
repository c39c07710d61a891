"""Channels that belong together, and networks from which those that are 0 are removed, with the same logits."""

import contextlib

import pytest
import torch
from torch.testing import assert_close

from rqlib import models
from rqlib.core import parametrizations
from rqlib.measures import cost
from rqlib.pruning import channels, masks
from tests.networks import COLOR, IMAGE, narrow

X = torch.rand(3, *COLOR.shape, generator=torch.Generator().manual_seed(0))


def halved(model):
    """With half of the channels masked, and with these channels removed."""
    masked = masks.apply_masks(model, masks.magnitude_masks(model, 0.5, structure="filters", image=IMAGE))
    return masked, channels.remove(parametrizations.bake(masked), IMAGE)


@pytest.mark.parametrize("name", models.MODELS)
@torch.no_grad()
def test_half_of_the_channels_removed_from_every_network(name):
    model = narrow(name)
    masked, removed = halved(model)
    assert_close(removed(X), masked(X))
    assert not torch.equal(masked(X), model(X))
    before, after = (cost.totals(cost.profile(network, COLOR)) for network in (model, removed))
    assert after["params"] < 0.36 * before["params"]
    assert after["macs"] < 0.45 * before["macs"]
    assert sum(p.numel() for p in removed.parameters()) == after["params"]


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


@pytest.mark.parametrize(
    ("name", "reader", "writers", "times"),
    [
        pytest.param("MobileNetV2", "stage2.0.2.conv", ["stage2.0.0.conv"], 1, id="through a depthwise convolution"),
        pytest.param(
            "Inception_BN",
            "inception3b.one.conv",
            [f"inception3a.{branch}" for branch in ("one.conv", "three.1.conv", "five.1.conv", "pooled.1.conv")],
            1,
            id="of concatenated branches",
        ),
        pytest.param("SmallCNN", "classifier.linear1", ["features.2.conv"], 36, id="once for each flattened pixel"),
    ],
)
def test_which_channels_a_layer_reads(name, reader, writers, times):
    found = channels.find(narrow(name), IMAGE)
    written = torch.cat([found.writes[writer] for writer in writers])
    assert torch.equal(found.reads[reader], written.repeat_interleave(times))


@pytest.mark.parametrize("bias", [0.0, 1.0])
@torch.no_grad()
def test_of_a_layer_without_weights_the_channels_with_a_bias_stay_or_one(bias):
    model = narrow("CNN_small")
    layer = model.features[0].conv
    layer.weight.zero_()
    layer.bias.fill_(bias)
    said = pytest.warns(UserWarning, match="no channel is 0") if bias else contextlib.nullcontext()
    with said:
        removed = channels.remove(model, IMAGE)
    assert removed.features[0].conv.out_channels == (layer.out_channels if bias else 1)
    assert_close(removed(X), model(X))
