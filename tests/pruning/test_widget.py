"""The browser of layers shows what each method keeps."""

import torch
from torch import nn

from rqlib.pruning import masks, widget


def test_mask_browser_shows_what_each_method_keeps_of_the_chosen_layer():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    pruned = {}
    for method, kept, scope in (("lwm", 0.1, "layer"), ("hydra", 0.1, "global"), ("lwm", 0.5, "layer")):
        pruned[method, kept] = masks.apply_masks(dense, masks.magnitude_masks(dense, kept, scope=scope))
    (alone,) = widget.mask_browser(dense, {("scratch", 0.1): nn.Linear(4, 1)}).static().data
    assert sum(alone.customdata) == 108, "without masks the dense network is shown alone"
    browser = widget.mask_browser(dense, pruned)
    assert browser.controls["layer"].options == ("0", "2")
    assert browser.controls["kept"].value == 0.5
    browser.controls["layer"].value = "2"
    browser.controls["kept"].value = 0.1
    assert browser.figure.layout.title.text == "2: 0.1 of 1,440 weights kept"
    dense_line, lwm, hydra = browser.static().data
    assert lwm.name == "LWM (144)"
    assert [sum(line.customdata) for line in (dense_line, lwm)] == [1440, 144]
    assert sum(hydra.customdata) != 144
