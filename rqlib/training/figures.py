"""Figures of images, of what a network costs, of its training, its errors, its feature maps and its activations."""

import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from pandas import DataFrame
from plotly.subplots import make_subplots
from torch import Tensor

from rqlib.core.plots import PALETTE, SCALE, mosaic, picture, strip
from rqlib.defenses.figures import activation_curves as activation_curves
from rqlib.defenses.figures import cost_against_size as cost_against_size


def sample_grid(images: Tensor, labels: Tensor, classes: tuple[str, ...], *, title: str) -> go.Figure:
    """The first eight images uint8 (N, C, H, W) of every class, one row per class; at most 20 classes are shown."""
    shown = [name for name in range(len(classes)) if (labels == name).any()][:20]
    rows = [strip(images[labels == name][:8], 8) for name in shown]
    figure = picture(torch.cat(rows, dim=1))
    height = images.shape[2] + 2
    figure.update_yaxes(
        visible=True,
        showline=False,
        ticks="",
        tickvals=[height * (row + 0.5) for row in range(len(shown))],
        ticktext=[classes[name] for name in shown],
    )
    figure.update_layout(title=title, width=140 + 56 * 8, height=90 + 56 * len(shown))
    return figure


def cost_bars(profile: DataFrame, *, title: str) -> go.Figure:
    """Parameters and multiply-accumulates of every convolution and linear layer, from `measures.profile`."""
    rows = profile[profile.macs > 0]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (column, name) in enumerate((("params", "parameters"), ("macs", "MACs")), start=1):
        bars = go.Bar(
            x=rows.layer, y=rows[column], name=name, hovertemplate="%{x}<br>%{y:,} " + name + "<extra></extra>"
        )
        figure.add_trace(bars, row=row, col=1)
        figure.update_yaxes(title=name, row=row, col=1, exponentformat="SI")
    figure.update_xaxes(tickangle=-60, tickfont={"size": 10})
    figure.update_layout(title=title, showlegend=False, height=560)
    return figure


_CURVES = {  # column -> (axis, name, color)
    "loss": (1, "training loss", PALETTE[0]),
    "validation_loss": (1, "validation loss", PALETTE[1]),
    "validation_accuracy": (2, "validation accuracy", PALETTE[1]),
    "validation_robust_accuracy": (2, "robust validation accuracy", PALETTE[2]),
}


def training_curves(history: DataFrame, *, epochs: int | None = None, title: str = "Training") -> go.Figure:
    """Loss and accuracy against the epoch.

    Args:
        history: from `training.fit`; a curve whose column is missing is left out.
        epochs: how many epochs the training takes; the axis of a live figure then stays the same.
    """
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for column, (axis, name, shade) in _CURVES.items():
        if column in history:
            line = go.Scatter(
                x=history.epoch,
                y=history[column],
                name=name,
                mode="lines+markers",
                line={"color": shade, "dash": "dot" if column == "loss" else "solid"},
                hovertemplate="epoch %{x}<br>" + name + " %{y:.4f}<extra></extra>",
            )
            figure.add_trace(line, row=1, col=axis)
    figure.update_xaxes(title="epoch", range=[0.5, (epochs or max(len(history), 1)) + 0.5])
    figure.update_yaxes(title="loss", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="accuracy (fraction)", range=[0, 1.02], row=1, col=2)
    figure.update_layout(title=title, legend={"orientation": "h", "y": -0.28}, height=450)
    return figure


def confusion_matrix(counts: Tensor, classes: tuple[str, ...], *, title: str) -> go.Figure:
    """For each class (row), the share of its images that each prediction has; up to 20 classes show ``counts`` too."""
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    written = counts.tolist() if len(classes) <= 20 else None
    heatmap = go.Heatmap(
        z=share.tolist(),
        x=list(classes),
        y=list(classes),
        text=written,
        texttemplate="%{text}" if written else None,
        customdata=counts.tolist(),
        zmin=0,
        zmax=1,
        colorscale=SCALE,
        colorbar={"title": "share of<br>the class"},
        hovertemplate="%{y} taken for %{x}<br>%{customdata} images, %{z:.1%}<extra></extra>",
    )
    figure = go.Figure(heatmap)
    figure.update_xaxes(title="prediction", type="category", tickangle=-45)
    figure.update_yaxes(title="label", type="category", autorange="reversed")
    return figure.update_layout(title=title, width=760, height=680)


def feature_maps(maps: Tensor, *, title: str) -> go.Figure:
    """The channels (channels, H, W) of one layer for one image in reading order, each scaled to its own range."""
    return mosaic(as_images(maps), side=54, title=title)


def as_images(maps: Tensor) -> Tensor:
    """Feature maps (channels, H, W) as gray images uint8 (channels, 1, h, w), each scaled to its own range."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = ((maps - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)[:, None]
    return F.interpolate(scaled, scale_factor=max(1, 48 // maps.shape[-1]), mode="nearest")
