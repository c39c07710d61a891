"""Tables to figures: one house template, one color a model in every notebook, axes with units."""

import plotly.express as px
import plotly.graph_objects as go
import plotly.io as pio
import torch
import torch.nn.functional as F
from pandas import DataFrame
from plotly.subplots import make_subplots
from torch import Tensor

from rqlib import models

# Okabe and Ito's colors, told apart with every kind of color vision; their yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8C564B", "#7F3C8D")
KINDS = {"INT": PALETTE[0], "POT": PALETTE[1], "FLOAT": PALETTE[2]}
SCALE = "Cividis"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

_FONT = {"family": "Helvetica, Arial, DejaVu Sans, sans-serif", "size": 14, "color": "#222222"}
_AXIS = {
    "showline": True,
    "linecolor": "#888888",
    "gridcolor": "#E6E6E6",
    "zeroline": False,
    "ticks": "outside",
    "automargin": True,
}
pio.templates["rqlib"] = go.layout.Template(
    layout={
        "font": _FONT,
        "colorway": PALETTE,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "title": {"x": 0.01, "xanchor": "left", "font": {"size": 17}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 70, "r": 30, "t": 70, "b": 60},
        "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
        "hoverlabel": {"font": {"size": 13}},
        "width": 900,
        "height": 480,
    }
)
pio.templates.default = "rqlib"


def color(model: str) -> str:
    """The color of a network, the same in every figure of every notebook."""
    names = list(models.MODELS)
    index = names.index(model) if model in names else sum(map(ord, model))
    return PALETTE[index % len(PALETTE)]


def dash(model: str) -> str:
    """The dash of a network's lines: networks that share a color differ in it."""
    names = list(models.MODELS)
    return DASHES[names.index(model) // len(PALETTE) % len(DASHES)] if model in names else DASHES[-1]


def sample_grid(
    images: Tensor, labels: Tensor, classes: tuple[str, ...], *, per_class: int = 8, title: str = "Sample images"
) -> go.Figure:
    """The first images of every class, a row a class (at most 20 classes).

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """
    shown = [name for name in range(len(classes)) if (labels == name).any()][:20]
    rows = [_strip(images[labels == name][:per_class], per_class) for name in shown]
    figure = picture(torch.cat(rows, dim=1))
    height = images.shape[2] + 2
    figure.update_yaxes(
        visible=True,
        showline=False,
        ticks="",
        tickvals=[height * (row + 0.5) for row in range(len(shown))],
        ticktext=[classes[name] for name in shown],
    )
    figure.update_layout(title=title, width=140 + 56 * per_class, height=90 + 56 * len(shown))
    return figure


def cost_bars(profile: DataFrame, *, title: str = "Cost by layer") -> go.Figure:
    """Parameters and multiply-accumulates of every convolution and linear layer.

    Args:
        profile: from `cost.profile`.
    """
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
        history: from `train.fit`; columns it lacks are left out.
        epochs: how many the training takes (fixes the axis of a live figure).
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
    figure.update_yaxes(title="accuracy (fraction)", row=1, col=2)
    figure.update_layout(title=title, legend={"orientation": "h", "y": -0.28}, height=450)
    return figure


def confusion_matrix(counts: Tensor, classes: tuple[str, ...], *, title: str = "Confusion matrix") -> go.Figure:
    """Share of each class's images by prediction; counts are written in small matrices.

    Args:
        counts: int (K, K), row = label, column = prediction.
    """
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


def feature_maps(maps: Tensor, *, columns: int = 8, title: str = "Feature maps") -> go.Figure:
    """Channels of one layer for one image, each scaled to its own range, in reading order.

    Args:
        maps: float (channels, H, W).
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = ((maps - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)[:, None]
    scaled = F.interpolate(scaled, scale_factor=max(1, 48 // maps.shape[-1]), mode="nearest")
    strips = [_strip(scaled[start : start + columns], columns) for start in range(0, len(scaled), columns)]
    figure = picture(torch.cat(strips, dim=1))
    return figure.update_layout(title=title, width=60 + 54 * columns, height=90 + 54 * len(strips))


def side_by_side(figures: list[go.Figure], *, title: str = "") -> go.Figure:
    """Pictures next to each other, each under its own title."""
    joined = make_subplots(rows=1, cols=len(figures), subplot_titles=[figure.layout.title.text for figure in figures])
    for column, figure in enumerate(figures, start=1):
        joined.add_traces(figure.data, rows=1, cols=column)
    joined.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    height = max(figure.layout.height for figure in figures) + 30
    return joined.update_layout(title=title, width=sum(figure.layout.width for figure in figures), height=height)


def mosaic(images: Tensor, *, columns: int = 8, title: str = "") -> go.Figure:
    """Images in reading order, without axes.

    Args:
        images: uint8 (N, C, H, W).
    """
    rows = [_strip(images[start : start + columns], columns) for start in range(0, len(images), columns)]
    figure = picture(torch.cat(rows, dim=1))
    return figure.update_layout(title=title, width=60 + 70 * columns, height=90 + 70 * len(rows))


def picture(mosaic: Tensor) -> go.Figure:
    """A figure of an image uint8 (C, H, W), compressed as PNG; no axes."""
    pixels = mosaic.permute(1, 2, 0).cpu().numpy()
    pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    figure = px.imshow(pixels, binary_string=True, template="rqlib")
    figure.update_traces(hoverinfo="skip", hovertemplate=None)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 60, "b": 10})


def _strip(images: Tensor, count: int) -> Tensor:
    """uint8 (n, C, H, W), n <= count -> one row (C, H + 2, count (W + 2)) on white, two pixels apart."""
    padded = F.pad(images, (1, 1, 1, 1), value=255)
    blank = padded.new_full((count - len(padded), *padded.shape[1:]), 255)
    return torch.cat([padded, blank]).permute(1, 2, 0, 3).flatten(2)
