"""Weights of any layer in any format."""

import ipywidgets
import plotly.graph_objects as go
from torch import nn

from rqlib.core import layers, widgets
from rqlib.quantization import calibration, figures, post_training
from rqlib.quantization.formats import Format


def weight_browser(
    network: nn.Module, formats: list[Format], *, granularity: str = "tensor", ranges: str = "minmax"
) -> widgets.Explorer:
    """Histogram of a chosen layer's weights, BatchNorm folded, before and after rounding to a chosen format."""
    calibrated = calibration.calibrate(network, None, ranges=ranges, activations=False)
    weighted = dict(layers.weighted_layers(calibrated.network))
    names = [format.name for format in formats]

    def draw(layer: str, format: str) -> go.Figure:
        quantized = post_training.apply(calibrated, {layer: format}, granularity=granularity, activations=False)
        before, after = weighted[layer].weight.detach(), quantized.get_submodule(layer).weight.detach()
        title = f"{layer} in {format}: {after.unique().numel()} different values of {before.numel():,}"
        return figures.weight_histogram(before.cpu(), after.cpu(), title=title)

    return widgets.explorer(
        draw,
        layer=ipywidgets.Dropdown(options=list(weighted), description="layer"),
        format=ipywidgets.Dropdown(
            options=names, value="INT_4" if "INT_4" in names else names[0], description="format"
        ),
    )
