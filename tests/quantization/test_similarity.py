"""Divergences against their definitions written out, and the published measure against its closed form."""

import copy
import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn

from rqlib import quantization
from rqlib.core import layers
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.quantization import similarity
from tests import quantized_networks

SPEC = ImageSpec()


def pair(inputs=32, outputs=64, groups=1, noise=1e-3, bias=False, format=None):
    """A network that ends in a convolution, and a copy whose last weights have moved a little, or in a format."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(3, inputs, 1), nn.Conv2d(inputs, outputs, 3, groups=groups, bias=bias))
    if format is not None:
        return before, quantization.ptq(before, format, None, activations=False)
    after = copy.deepcopy(before)
    after[1].weight.data += noise * torch.randn(before[1].weight.shape)
    return before, after


def value(measure, networks):
    return similarity.compare(*networks, spec=SPEC, measure=measure).set_index("layer")[measure]["1"]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"noise": 1e-2}, 1e-3),
        ({"noise": 1e-4}, 1e-3),
        ({"format": "INT_8"}, 1e-2),
        ({"format": "INT_12"}, 1e-3),
    ],
)
def test_legacy_is_a_mean_square_error_in_disguise(options, tolerance):
    before, after = pair(**options)
    difference = (after[1].weight - before[1].weight).detach().double()
    rows = difference.shape[0] * 9  # all axes but the one of the softmax
    expected = rows / 8 * difference.var(1, correction=0).mean().item()
    assert value("js_legacy", (before, after)) == pytest.approx(expected, rel=tolerance)


def test_legacy_is_zero_for_depthwise_layers_however_far_they_move():
    networks = pair(32, 32, groups=32, noise=1.0)
    assert value("js_legacy", networks) == 0
    assert value("js", networks) > 0.01  # nine values per channel fill few bins
    before, after = (network[1].weight for network in networks)
    noise = (after - before).square().sum() / before.square().sum()
    assert noise > 0.1
    assert value("relative_error", networks) == pytest.approx(noise.item())


def test_legacy_is_the_divergence_of_softmaxes_summed_over_rows():
    before, after = pair(4, 5, noise=0.5, bias=True)
    after[1].bias.data += 0.3 * torch.randn(5)
    p, q = (net[1].weight.detach().double().softmax(1).movedim(1, -1).reshape(-1, 4).numpy() for net in (before, after))
    expected = sum(jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True))
    p, q = (net[1].bias.detach().double().softmax(0).numpy() for net in (before, after))
    assert value("js_legacy", (before, after)) == pytest.approx(expected + jensenshannon(p, q) ** 2)


def test_js_is_the_divergence_of_histograms_averaged_over_channels():
    before, after = pair(noise=0.02)
    rows = before[1].weight.detach().flatten(1)
    low, high = rows.min().item(), rows.max().item()
    spread = torch.quantile(rows.flatten(), 0.75) - torch.quantile(rows.flatten(), 0.25)
    count = math.ceil((high - low) / (2 * spread.item() / rows.shape[1] ** (1 / 3)))
    total = 0.0
    for a, b in zip(rows, after[1].weight.detach().flatten(1).clamp(low, high), strict=True):
        p, q = (torch.histc(part, count, low, high).numpy() for part in (a, b))
        total += jensenshannon(p, q) ** 2
    assert value("js", (before, after)) == pytest.approx(total / len(rows), rel=0.02)


def test_js_lies_between_0_and_log_2():
    before, after = pair(noise=0.0)
    assert value("js", (before, after)) == 0
    after[1].weight.data = torch.where(before[1].weight > 0, -5.0, 5.0)
    before[1].weight.data = torch.linspace(-1, 1, before[1].weight.numel()).view_as(before[1].weight)
    assert 0.5 * math.log(2) < value("js", (before, after)) <= math.log(2) + 1e-9


@pytest.mark.parametrize("measure", similarity.MEASURES)
def test_finer_formats_are_nearer(measure):
    model, pictures = quantized_networks.network(), quantized_networks.images(2)
    values = []
    for bits in (2, 4, 6, 8):
        quantized = quantization.ptq(model, f"INT_{bits}", pictures, activations=False)
        frame = similarity.compare(model, quantized, spec=SPEC, measure=measure)
        values.append(similarity.figures(frame)[f"{measure}_macs"])
    assert values == sorted(values, reverse=True)
    assert values[0] > 20 * values[-1]


def test_rows_are_the_layers_and_figures_weight_them_by_shares():
    model = quantized_networks.network()
    quantized = quantization.ptq(model, "INT_4", None, activations=False)
    frame = similarity.compare(model, quantized, spec=SPEC)
    assert frame.layer.tolist() == [name for name, _ in layers.weighted_layers(model)]
    assert frame.macs.sum() == cost.totals(cost.profile(model, SPEC))["macs"]
    figures = similarity.figures(frame)
    assert figures["js_params"] == pytest.approx((frame.js * frame.params / frame.params.sum()).sum())
    assert figures["js_macs"] == pytest.approx((frame.js * frame.macs / frame.macs.sum()).sum())
    assert figures["js_macs_log10"] == pytest.approx(figures["js_macs"] * math.log10(frame.macs.sum()))
    assert figures["js_macs_cbrt"] == pytest.approx(figures["js_macs"] * frame.macs.sum() ** (1 / 3))
    percent = similarity.figures(frame, percent=True)
    assert all(percent[name] == pytest.approx(100 * figures[name]) for name in figures)
    assert similarity.normalized(figures, figures) == {"js_params_normalized": 1.0, "js_macs_normalized": 1.0}


def test_batchnorm_is_folded_before_comparing():
    model = quantized_networks.network()
    assert similarity.compare(model, layers.fold_batchnorm(model), spec=SPEC).js.max() == 0


@pytest.mark.parametrize(
    ("other", "measure", "words"),
    [
        (lambda: quantized_networks.network(width=0.25), "kl", "unknown measure 'kl'"),
        (lambda: nn.Linear(1, 1), "js", "expected a copy of the network, got one without its layers stem.conv"),
        (
            lambda: quantized_networks.network(width=0.5),
            "js",
            r"conv: expected weights of shape \(16, 3, 3, 3\), got \(32",
        ),
    ],
)
def test_errors(other, measure, words):
    with pytest.raises(ValueError, match=words):
        similarity.compare(quantized_networks.network(width=0.25), other(), spec=SPEC, measure=measure)
