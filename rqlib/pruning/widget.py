"""A browser of layers: which weights does each method keep?"""

from collections.abc import Mapping

import ipywidgets
import plotly.graph_objects as go
from torch import nn

from rqlib.core import layers, widgets
from rqlib.core.parametrizations import steps_of
from rqlib.pruning import figures
from rqlib.pruning.parametrizations import Masked


def mask_browser(dense: nn.Module, pruned: Mapping[tuple[str, float], nn.Module]) -> widgets.Explorer:
    """Histogram of the weights of a chosen layer before pruning, and of those that each method keeps.

    ``pruned`` maps (method, kept) to networks. Those without masks, such as those from scratch, are left out.
    """
    weighted = dict(layers.weighted_layers(dense))
    masked = {key: steps_of(network, Masked) for key, network in pruned.items()}
    shares = sorted({kept for (_, kept), steps in masked.items() if steps}, reverse=True) or [1.0]

    def draw(layer: str, kept: float) -> go.Figure:
        weight, name = weighted[layer].weight.detach(), f"{layer}.weight"
        chosen = {
            method: steps[name].mask for (method, share), steps in masked.items() if share == kept and name in steps
        }
        return figures.kept_histogram(weight, chosen, title=f"{layer}: {kept:g} of {weight.numel():,} weights kept")

    return widgets.explorer(
        draw,
        layer=ipywidgets.Dropdown(options=list(weighted), description="layer"),
        kept=ipywidgets.Dropdown(options=[(f"{kept:g}", kept) for kept in shares], description="kept"),
    )
