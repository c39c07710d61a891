import torch
from torch import nn

from rqlib.pruning import masks, widget


def test_without_pruned_networks_the_dense_one_is_shown_alone():
    browser = widget.mask_browser(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), {})
    (line,) = browser.static().data
    assert sum(line.customdata) == 8


def test_mask_browser_shows_what_each_method_keeps_of_the_chosen_layer():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    pruned = {
        (method, kept): masks.apply_masks(dense, masks.magnitude_masks(dense, kept, scope=scope))
        for method, scope in (("lwm", "layer"), ("hydra", "global"))
        for kept in (0.1, 0.5)
    }
    browser = widget.mask_browser(dense, pruned)
    assert browser.controls["layer"].options == ("0", "2")
    assert browser.controls["kept"].value == 0.5
    browser.controls["layer"].value = "2"
    browser.controls["kept"].value = 0.1
    assert browser.figure.layout.title.text == "2: 0.1 of 1,440 weights kept"
    dense_line, lwm, hydra = browser.static().data
    assert lwm.name == "LWM (144)"
    assert sum(dense_line.customdata) == 1440
    assert sum(hydra.customdata) != 144
