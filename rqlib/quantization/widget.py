"""The weight browser: choose a layer and a format, and see what rounding does to the weights."""

from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go
from torch import nn

from rqlib.core import layers, widgets
from rqlib.quantization import calibration, figures, post_training
from rqlib.quantization.formats import Format


def weight_browser(
    network: nn.Module, formats: Sequence[Format], *, granularity: str = "tensor", ranges: str = "mse"
) -> widgets.Explorer:
    """A histogram of the weights of one layer before and after rounding, with controls for the layer and the format.

    BatchNorm is folded. ``granularity`` and ``ranges`` are as `quantization.ptq` takes them.
    """
    calibrated = calibration.calibrate(network, None, ranges=ranges, activations=False)
    weighted = dict(layers.weighted_layers(calibrated.network))
    names = [format.name for format in formats]

    def draw(layer: str, format: str) -> go.Figure:
        quantized = post_training.apply(calibrated, {layer: format}, granularity=granularity, activations=False)
        before, after = weighted[layer].weight.detach(), quantized.get_submodule(layer).weight.detach()
        title = f"{layer} in {format}: {after.unique().numel()} different values of {before.numel():,}"
        return figures.weight_histogram(before.cpu(), after.cpu(), title=title)

    first = "INT_4" if "INT_4" in names else names[0]
    return widgets.explorer(
        draw,
        layer=ipywidgets.Dropdown(options=list(weighted), description="layer"),
        format=ipywidgets.Dropdown(options=names, value=first, description="format"),
    )
