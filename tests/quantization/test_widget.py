import torch
from torch import nn

from rqlib import quantization
from rqlib.quantization import widget


def test_weight_browser_shows_the_chosen_layer_in_the_chosen_format():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    browser = widget.weight_browser(network, [quantization.INT(2), quantization.INT(4)])
    assert browser.controls["layer"].options == ("0", "3")
    assert browser.controls["format"].value == "INT_4"
    browser.controls["layer"].value = "3"
    browser.controls["format"].value = "INT_2"
    assert browser.figure.layout.title.text == "3 in INT_2: 3 different values of 1,440"
    assert sum(browser.static().data[1].y) == 1440
    assert len(browser.static().data[1].y) == 3
