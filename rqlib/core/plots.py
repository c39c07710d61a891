"""What all figures share: one template, one color per network in every notebook, pictures of images."""

import math
from collections.abc import Iterable

import numpy
import plotly.express as px
import plotly.graph_objects as go
import plotly.io as pio
import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from torch import Tensor

# Okabe and Ito's colors, told apart with every kind of color vision; their yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8C564B", "#7F3C8D")
KINDS = {"INT": PALETTE[0], "POT": PALETTE[1], "FLOAT": PALETTE[2]}
SCALE = "Cividis"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

_AXIS = {
    "showline": True,
    "linecolor": "#888888",
    "gridcolor": "#E6E6E6",
    "zeroline": False,
    "ticks": "outside",
    "automargin": True,
}
DECADES = {"type": "log", "dtick": 1, "exponentformat": "power"}
"""A logarithmic axis with a tick for every power of ten."""
_ACCURACIES = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)

pio.templates["rqlib"] = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, DejaVu Sans, sans-serif", "size": 14, "color": "#222222"},
        "colorway": PALETTE,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "title": {"x": 0.01, "xanchor": "left", "font": {"size": 17}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 70, "r": 30, "t": 70, "b": 60},
        "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
        "hoverlabel": {"font": {"size": 13}},
        "height": 480,
    }
)
pio.templates.default = "rqlib"


def color(name: str, names: Iterable[str]) -> str:
    """The color of a network, the same in every figure: it depends on the place of ``name`` among ``names``."""
    known = list(names)
    index = known.index(name) if name in known else sum(map(ord, name))
    return PALETTE[index % len(PALETTE)]


def dash(name: str, names: Iterable[str]) -> str:
    """The dash of a network's lines; networks that share a color have different dashes."""
    known = list(names)
    return DASHES[known.index(name) // len(PALETTE) % len(DASHES)] if name in known else DASHES[-1]


def error_bars(share, half) -> dict:
    """The ``error_y`` of shares with intervals of half the width ``half`` (NaN: none), which end at 0 and at 1."""
    share, half = (numpy.asarray(values, dtype=float) for values in (share, half))
    above, below = numpy.minimum(half, 1 - share), numpy.minimum(half, share)
    known = bool(numpy.isfinite(half).any())
    return {"array": above, "arrayminus": below, "symmetric": False, "visible": known, "thickness": 1.2, "width": 3}


def errors(accuracy, images: int):
    """The share of errors, for `accuracy_axis`; a logarithm has no 0, so no error is half an error of ``images``."""
    return numpy.maximum(1 - accuracy, 0.5 / images)


def accuracy_axis(figure: go.Figure, images: int, **place) -> go.Figure:
    """Make the y axis, on which `errors` are drawn, one of accuracy, logarithmic in the errors and 1 at the top.

    From 0.9 to 0.99 is then as far as from 0 to 0.9, so that small losses can be seen beside large ones.
    """
    shown = [one for one in _ACCURACIES if 1 - one > 1.5 / images]
    ticks = {"tickvals": [*(1 - one for one in shown), 0.5 / images], "ticktext": [*(f"{one:g}" for one in shown), "1"]}
    reach = [0.02, math.log10(0.4 / images)]
    title = "accuracy (fraction; logarithmic in the errors)"
    return figure.update_yaxes(title=title, type="log", range=reach, **ticks, **place)


def side_by_side(figures: list[go.Figure], *, title: str = "") -> go.Figure:
    """One figure that shows pictures next to each other, each under its own title."""
    joined = make_subplots(rows=1, cols=len(figures), subplot_titles=[figure.layout.title.text for figure in figures])
    for column, figure in enumerate(figures, start=1):
        joined.add_traces(figure.data, rows=1, cols=column)
    joined.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    height = max(figure.layout.height for figure in figures) + 30
    return joined.update_layout(title=title, width=sum(figure.layout.width for figure in figures), height=height)


def mosaic(images: Tensor, *, columns: int = 8, side: int = 70, title: str = "") -> go.Figure:
    """Images uint8 (N, C, H, W) in reading order, each ``side`` pixels of the screen wide and high, without axes."""
    rows = [strip(images[start : start + columns], columns) for start in range(0, len(images), columns)]
    figure = picture(torch.cat(rows, dim=1))
    return figure.update_layout(title=title, width=60 + side * columns, height=90 + side * len(rows))


def picture(mosaic: Tensor) -> go.Figure:
    """A figure of one image, uint8 (C, H, W), stored as PNG and without axes."""
    pixels = mosaic.permute(1, 2, 0).cpu().numpy()
    pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    figure = px.imshow(pixels, binary_string=True, template="rqlib")
    figure.update_traces(hoverinfo="skip", hovertemplate=None)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 60, "b": 10})


def strip(images: Tensor, count: int) -> Tensor:
    """Images uint8 (n, C, H, W) in a row of ``count`` places, two pixels apart: uint8 (C, H + 2, count (W + 2)).

    Places without an image are white.
    """
    padded = F.pad(images, (1, 1, 1, 1), value=255)
    blank = padded.new_full((count - len(padded), *padded.shape[1:]), 255)
    return torch.cat([padded, blank]).permute(1, 2, 0, 3).flatten(2)
