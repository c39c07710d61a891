"""The rows of what a convolution reads, by phases, against the convolution itself."""

import pytest
import torch
from torch import nn

from rqlib.certification import phases

LAYERS = {
    "stride 1": {"kernel_size": 3, "padding": 1},
    "pixels that no window reaches": {"kernel_size": 2, "stride": 3},
    "kernel no multiple of the stride": {"kernel_size": 5, "stride": 2, "padding": 2},
    "two directions": {"kernel_size": (4, 3), "stride": (2, 1), "padding": (1, 0)},
    "much padding": {"kernel_size": 3, "stride": 2, "padding": 3},
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_rows_give_the_same_products_as_the_convolution(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, bias=False, **options).double()
    assert phases.fit(layer)
    x = torch.randn(5, 3, 8, 9, dtype=torch.float64)
    y = layer(x)
    a = torch.randn_like(y)
    rows, images = phases.transposed(layer, a), phases.of(layer, x, y.shape[2:])
    assert rows.shape == images.shape
    torch.testing.assert_close((rows * images).flatten(1).sum(1), (a * y).flatten(1).sum(1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(3, 4, 3, dilation=2),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv1d(3, 4, 3),
        None,
    ],
    ids=str,
)
def test_other_layers_have_no_phases(layer):
    assert not phases.fit(layer)
