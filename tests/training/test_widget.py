import pytest
import torch
from torch import nn

from rqlib import data
from rqlib.training import widget


def test_live_curves_follow_the_rows():
    figure, update = widget.live_curves(3)
    rows = [{"epoch": 1, "loss": 2.0, "validation_loss": 1.5, "validation_accuracy": 0.4}]
    update(None, rows)
    update(None, [*rows, rows[0] | {"epoch": 2, "loss": 1.0}])
    assert tuple(figure.data[0].y) == (2.0, 1.0)
    assert figure.layout.xaxis.range == (0.5, 3.5)


@pytest.fixture
def networks():
    return {
        title: nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 36, 10))
        for title in ("natural", "adversarial")
    }


def test_feature_browser_shows_both_networks(networks):
    images = torch.randint(0, 255, (5, 3, 8, 8), dtype=torch.uint8)
    labels, classes = torch.arange(5), tuple("abcde")
    browser = widget.feature_browser(networks, images, labels, classes, channels=16)
    assert browser.controls["layer"].options == ("0", "1")
    browser.controls["image"].value = 3
    browser.controls["first_channel"].value = 32
    assert browser.figure.layout.title.text == "Layer 0, image 3 (label d)"
    titles = [note.text for note in browser.static().layout.annotations]
    assert titles == ["image", "natural: channels 24 to 39", "adversarial: channels 24 to 39"]
    maps = widget.features(networks["natural"], "1", data.to_pixels(images[3:4]))
    torch.testing.assert_close(maps, networks["natural"][0](data.to_pixels(images[3:4])).relu())


def test_networks_without_a_common_layer_are_refused(networks):
    pair = {"natural": networks["natural"], "other": nn.Flatten()}
    with pytest.raises(ValueError, match="share layer names, got natural, other"):
        widget.feature_browser(pair, torch.zeros(1, 3, 8, 8).byte(), torch.zeros(1).long(), ("a",))
