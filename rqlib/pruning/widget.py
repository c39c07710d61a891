"""Which weights of any layer each method keeps."""

from collections.abc import Mapping

import ipywidgets
import plotly.graph_objects as go
from torch import nn

from rqlib.core import layers, widgets
from rqlib.core.parametrizations import steps_of
from rqlib.pruning import figures
from rqlib.pruning.parametrizations import Masked


def mask_browser(dense: nn.Module, pruned: Mapping[tuple[str, float], nn.Module]) -> widgets.Explorer:
    """Histogram of a chosen layer's weights before pruning, and of those that each method keeps of them.

    Args:
        dense: the network that was pruned.
        pruned: (method, kept) -> masked network; without any the dense network is shown alone.
    """
    weighted = dict(layers.weighted_layers(dense))
    masks = {
        key: {name: step.mask for name, step in steps_of(network, Masked).items()} for key, network in pruned.items()
    }
    shares = sorted({kept for _, kept in pruned}, reverse=True) or [1.0]

    def draw(layer: str, kept: float) -> go.Figure:
        weight = weighted[layer].weight.detach()
        chosen = {method: found[f"{layer}.weight"] for (method, share), found in masks.items() if share == kept}
        return figures.kept_histogram(weight, chosen, title=f"{layer}: {kept:g} of {weight.numel():,} weights kept")

    return widgets.explorer(
        draw,
        layer=ipywidgets.Dropdown(options=list(weighted), description="layer"),
        kept=ipywidgets.Dropdown(options=[(f"{kept:g}", kept) for kept in shares], description="kept"),
    )
