"""Curves that grow while a network is trained, and a browser of the feature maps of its layers."""

from collections.abc import Callable

import ipywidgets
import plotly.graph_objects as go
import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data
from rqlib.core import layers, plots, runtime
from rqlib.core.widgets import Explorer, explorer, replace
from rqlib.training import figures


def live_curves(epochs: int) -> tuple[go.FigureWidget, Callable[[nn.Module, list[dict]], None]]:
    """A figure of loss and accuracy, and the function that adds each epoch to it: ``after_epoch`` of `training.fit`."""
    figure = go.FigureWidget(figures.training_curves(DataFrame(), epochs=epochs))

    def update(model: nn.Module, rows: list[dict]) -> None:
        replace(figure, figures.training_curves(DataFrame(rows), epochs=epochs))

    return figure, update


def feature_browser(
    networks: dict[str, nn.Module], images: Tensor, labels: Tensor, classes: tuple[str, ...], *, channels: int = 32
) -> Explorer:
    """Controls for a layer, an image and a range of channels; their feature maps, with networks side by side.

    Args:
        networks: title -> network; the layers to choose from are those that all networks have.
        images, labels: uint8 (N, C, H, W), the images to choose from, and int64 (N,).
        channels: how many channels are shown at once.

    Raises:
        ValueError: the networks have no layer name in common.
    """
    names = common_feature_layers(networks, data.to_pixels(images[:1]))
    if not names:
        raise ValueError(
            f"expected networks that share layer names, got {', '.join(networks)}: compare two of one kind"
        )
    weighted = [name for name, _ in layers.weighted_layers(next(iter(networks.values()))) if name in names]

    def draw(layer: str, image: int, first_channel: int) -> go.Figure:
        x = data.to_pixels(images[image : image + 1])
        shown = [plots.mosaic(images[image : image + 1], columns=1, side=110, title="image")]
        for title, network in networks.items():
            maps = features(network, layer, x)[0]
            start = min(first_channel, max(0, len(maps) - channels))
            some = maps[start : start + channels]
            heading = f"{title}: channels {start} to {start + len(some) - 1}"
            shown.append(figures.feature_maps(some, title=heading))
        return plots.side_by_side(shown, title=f"Layer {layer}, image {image} (label {classes[labels[image]]})")

    return explorer(
        draw,
        layer=ipywidgets.Dropdown(options=names, value=(weighted or names)[0], description="layer"),
        image=ipywidgets.IntSlider(0, 0, len(images) - 1, description="image", continuous_update=False),
        first_channel=ipywidgets.IntSlider(0, 0, 480, step=channels, description="channel", continuous_update=False),
    )


@torch.no_grad()
def features(network: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The output of a layer in eval mode, as float32 (B, channels, H, W) on the CPU."""
    with runtime.evaluating(network):
        return layers.outputs(network, [layer], runtime.active().place(x))[layer].float().cpu()


def common_feature_layers(networks: dict[str, nn.Module], x: Tensor) -> list[str]:
    """Names of the layers that every network has and whose output is image-like, (B, channels, H, W)."""
    found = []
    for network in networks.values():
        names = [name for name, module in network.named_modules() if name and not list(module.children())]
        with torch.no_grad(), runtime.evaluating(network):
            shown = layers.outputs(network, names, runtime.active().place(x))
        found.append([name for name in names if name in shown and shown[name].dim() == 4])
    return [name for name in found[0] if all(name in names for names in found)]
