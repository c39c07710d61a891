"""Controls beside a figure: choose, redraw, never train. One mechanism, `explorer`, serves every notebook."""

from collections.abc import Callable

import ipywidgets
import plotly.graph_objects as go
import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data, layers, plots, runtime


class Explorer(ipywidgets.VBox):
    """Controls above a live figure that is drawn anew whenever one of them changes."""

    def __init__(self, draw: Callable[..., go.Figure], controls: dict[str, ipywidgets.ValueWidget]):
        self.draw, self.controls = draw, controls
        self.figure = go.FigureWidget(self.static())
        rows = ipywidgets.Layout(flex_flow="row wrap")
        super().__init__([ipywidgets.HBox(list(controls.values()), layout=rows), self.figure])
        for control in controls.values():
            control.observe(lambda change: self.redraw(), names="value")

    def static(self) -> go.Figure:
        """The figure of the present state, for a batch run or a report."""
        return self.draw(**{name: control.value for name, control in self.controls.items()})

    def redraw(self) -> None:
        """Draw the present state into the live figure."""
        replace(self.figure, self.static())


def explorer(draw: Callable[..., go.Figure], **controls: ipywidgets.ValueWidget) -> Explorer:
    """A live figure ``draw(**values)`` under one control for each argument."""
    return Explorer(draw, controls)


def replace(live: go.FigureWidget, figure: go.Figure) -> None:
    """Give a live figure the traces and layout of another; traces of the same kinds are updated in place."""
    with live.batch_update():
        if [trace.type for trace in live.data] == [trace.type for trace in figure.data]:
            for old, new in zip(live.data, figure.data, strict=True):
                old.update(new.to_plotly_json(), overwrite=True)
        else:
            live.data = []
            live.add_traces(figure.data)
        live.layout = figure.layout


def live_curves(epochs: int) -> tuple[go.FigureWidget, Callable[[nn.Module, list[dict]], None]]:
    """A figure of loss and accuracy, and the ``after_epoch`` callback of `train.fit` that keeps it current."""
    figure = go.FigureWidget(plots.training_curves(DataFrame(), epochs=epochs))

    def update(model: nn.Module, rows: list[dict]) -> None:
        replace(figure, plots.training_curves(DataFrame(rows), epochs=epochs))

    return figure, update


def feature_browser(
    networks: dict[str, nn.Module], images: Tensor, labels: Tensor, classes: tuple[str, ...], *, channels: int = 32
) -> Explorer:
    """Feature maps of a chosen layer, image and range of channels, networks side by side.

    Args:
        networks: title -> network; the layers offered are those that all of them have.
        images: uint8 (N, C, H, W), the images offered.
        labels: int64 (N,).
        channels: how many are shown at once.

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
        figures = []
        for title, network in networks.items():
            maps = features(network, layer, x)[0]
            start = min(first_channel, max(0, len(maps) - channels))
            shown = maps[start : start + channels]
            figures.append(plots.feature_maps(shown, title=f"{title}: channels {start} to {start + len(shown) - 1}"))
        return plots.side_by_side(figures, title=f"Layer {layer}, image {image} (label {classes[labels[image]]})")

    return explorer(
        draw,
        layer=ipywidgets.Dropdown(options=names, value=(weighted or names)[0], description="layer"),
        image=ipywidgets.IntSlider(0, 0, len(images) - 1, description="image", continuous_update=False),
        first_channel=ipywidgets.IntSlider(0, 0, 480, step=channels, description="channel", continuous_update=False),
    )


@torch.no_grad()
def features(network: nn.Module, layer: str, x: Tensor) -> Tensor:
    """Output of a layer (B, channels, H, W) in eval mode and float32."""
    with runtime.evaluating(network):
        return layers.outputs(network, [layer], runtime.active().place(x))[layer].float().cpu()


def common_feature_layers(networks: dict[str, nn.Module], x: Tensor) -> list[str]:
    """Names of convolutions, BatchNorms, activations and poolings with image-like output in every network."""
    found = []
    for network in networks.values():
        names = [name for name, module in network.named_modules() if name and not list(module.children())]
        with torch.no_grad(), runtime.evaluating(network):
            shown = layers.outputs(network, names, runtime.active().place(x))
        found.append([name for name in names if name in shown and shown[name].dim() == 4])
    return [name for name in found[0] if all(name in names for names in found)]
