"""The estimated sensitivity against explicit Jacobians and against what is measured."""

import copy

import numpy
import pandas
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from rqlib import quantization
from rqlib.core import layers
from rqlib.quantization import gradients, layer_formats
from tests import quantized_networks

FORMATS = ["INT_2", "INT_4", "INT_8"]


def test_it_is_the_squared_change_of_the_logits_to_first_order():
    """One logit: the sign does not matter, so the estimate is exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 1)).eval()
    pictures = quantized_networks.images(7, size=8)
    found = gradients.gradient_sensitivity(model, ["INT_4"], pictures, granularity="channel")
    for name, layer in layers.weighted_layers(model):
        rounded = copy.deepcopy(layer)
        layer_formats.quantize_weight(rounded, quantization.INT(4), "channel", "mse")
        error = rounded.weight.detach() - layer.weight.detach()

        value, ahead, behind = (_moved(model, name, step * error, pictures) for step in (0, 1e-3, -1e-3))
        expected = (((ahead - behind) / 2e-3).square().sum() / value.square().sum()).item()
        assert found.set_index("layer").logit_error[name] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def _moved(model, name, change, pictures):
    """The logits, in float64, with the weight of one layer moved."""
    model = copy.deepcopy(model).double()
    model.get_submodule(name).weight += change
    return model(pictures.double() / 255)


def test_it_orders_layers_and_formats_as_measured(trained, digits):
    images = digits.validation.take(100)
    measured = quantization.sweep(trained, FORMATS, digits.calibration(64), *images, per_layer=True)
    found = quantization.gradient_sensitivity(trained, FORMATS, images.images)
    assert found.columns.tolist() == ["layer", "format", "params", "coded_bits", "logit_error"]
    both = measured.merge(found, on=["layer", "format", "params", "coded_bits"])
    assert len(both) == len(measured)
    assert gradients.rank_correlation(measured, found)["logit_error"] > 0.95
    fine = both[both.format == "INT_8"]
    assert (fine.logit_error_y / fine.logit_error_x).between(0.5, 2).all()
    mix = quantization.allocate(found, 4 * found.drop_duplicates("layer").params.sum())
    assert set(mix) == set(found.layer)


def test_a_layer_that_is_called_twice_counts_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.layer(self.layer(x)).mean((2, 3))[:, :1]

    torch.manual_seed(0)
    model, pictures = Twice().eval(), quantized_networks.images(5, size=8)
    (row,) = gradients.gradient_sensitivity(model, ["INT_6"], pictures).to_dict("records")
    quantized = quantization.ptq(model, "INT_6", None, activations=False)
    with torch.no_grad():
        value, other = model(pictures / 255), quantized(pictures / 255)
    assert row["logit_error"] == pytest.approx(((other - value).square().sum() / value.square().sum()).item(), rel=0.1)


def test_rank_correlation_is_that_of_scipy():
    rng = numpy.random.default_rng(0)
    rows = pandas.DataFrame({"layer": range(30), "format": "INT_4", "logit_error": rng.integers(0, 9, 30)})
    measured = rows.assign(logit_error=rng.integers(0, 9, 30), accuracy_loss=0.0)
    found = gradients.rank_correlation(measured, rows)
    assert found.logit_error == pytest.approx(spearmanr(measured.logit_error, rows.logit_error).statistic)
    assert numpy.isnan(found.accuracy_loss)


def test_without_images_nothing_is_estimated():
    with pytest.raises(ValueError, match="expected images, got none"):
        gradients.gradient_sensitivity(nn.Linear(2, 2), FORMATS, torch.zeros(0, 3, 8, 8))
