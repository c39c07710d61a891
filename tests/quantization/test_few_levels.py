"""A network whose ReLUs are activations of few levels is quantized at the same points as with ReLUs."""

import pytest
import torch
from torch import nn

from rqlib import quantization
from rqlib.defenses import activations
from tests.networks import COLOR, narrow


def with_activation(name: str) -> nn.Module:
    """A SmallCNN whose ReLUs are replaced, with ranges from random images."""
    torch.manual_seed(0)
    model = narrow("SmallCNN")
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, nn.ReLU):
                setattr(parent, child, activations.parse(name)())
    model.train()(torch.rand(32, *COLOR.shape))
    return model.eval()


IMAGES = torch.randint(256, (64, *COLOR.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["DTReLU_4", "DDTReLU_4", "jacob_ema_4"])
def test_points_values_and_integer_form(name):
    model = with_activation(name)
    quantized = quantization.ptq(model, "INT_8", IMAGES)
    points = {name for name, _ in quantized.quantizers.named_children()}
    assert points == {
        point for point, _ in quantization.ptq(narrow("SmallCNN"), "INT_8", IMAGES).quantizers.named_children()
    }
    x = IMAGES / 255
    with torch.no_grad():
        logits, rounded = model(x), quantized(x)
        whole = quantization.lower(quantized)(x)
    assert (rounded - logits).norm() < 0.2 * logits.norm()
    assert (whole - rounded).norm() < 0.05 * rounded.norm()  # sums that differ by rounding may get another level


def test_sweep():
    model = with_activation("DTReLU_4")
    labels = model(IMAGES / 255).argmax(1)
    rows = quantization.sweep(model, ["INT_8", "INT_2"], IMAGES, IMAGES, labels).set_index("format")
    assert rows.accuracy["INT_8"] > 0.9
