import pytest
import torch
from pandas import DataFrame
from torch import nn

from rqlib import models
from rqlib.core.vocabulary import ImageSpec
from rqlib.prediction import anatomy


def test_plain_features_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.BatchNorm2d(4),
        nn.Conv2d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    assert anatomy.plain_features(network) == {
        "weighted_layers": 4,
        "weight_count": 3 * 4 * 9 + 4 * 9 + 2 * 6 + 12,
        "batchnorm_share": 0.5,
        "unfolded_share": 0.5,  # the one after an activation
        "depthwise_share": 0.25,
    }
    alone = anatomy.plain_features(nn.Linear(3, 2))
    assert (alone["batchnorm_share"], alone["unfolded_share"], alone["depthwise_share"]) == (0, 0, 0)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.layer(x)) if x.sum() > 0 else self.layer(x)


def test_what_needs_a_trace_is_not_known_without_one():
    found = anatomy.plain_features(Branching())
    assert found["unfolded_share"] is None
    assert found["batchnorm_share"] == 1


def test_features_that_rows_do_not_have_come_from_the_name_of_the_network():
    rows = DataFrame({"model": ["LeNet", "MobileNetV2", "mine"], "width": [1.0, 0.25, 1.0], "bits": 4})
    found = anatomy.completed(rows.assign(coded_bits=[40.0, 80.0, 120.0]))
    assert found.weight_count.tolist() == [10, 20, 30], "of the rows, not of the name"
    own = anatomy.plain_features(models.build("MobileNetV2", ImageSpec(), width=0.25))
    for name in ("weighted_layers", "batchnorm_share", "depthwise_share"):
        assert found[name][1] == own[name]
        assert found[name].isna().tolist() == [False, False, True]
    kept = anatomy.completed(rows.assign(weighted_layers=[1.0, None, 3.0]))
    assert kept.weighted_layers.tolist() == [1, own["weighted_layers"], 3]


def test_a_feature_that_is_known_of_no_network_gets_no_column():
    rows = DataFrame({"model": ["mine"], "width": [1.0]})
    assert list(anatomy.completed(rows)) == ["model", "width"]
    assert list(anatomy.completed(rows.assign(model="torchvision:nothing"))) == ["model", "width"]
    published = anatomy.completed(rows.drop(columns="width").assign(model="LeNet"))
    assert published.weighted_layers.tolist() == [4], "its width is 1 where the rows do not say it"


@pytest.mark.parametrize("name", ["AlexNet", "ResNet_18", "MobileNetV2"])
def test_batchnorm_of_our_own_networks_can_be_folded(name):
    with torch.no_grad():
        found = anatomy.plain_features(models.build(name, ImageSpec(), width=0.25))
    assert found["unfolded_share"] == 0
    assert (found["batchnorm_share"] > 0) == (name != "AlexNet")
    assert (found["depthwise_share"] > 0.2) == (name == "MobileNetV2")
