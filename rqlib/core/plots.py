"""What all figures share: one template, one color per network in every notebook, pictures of images."""

from collections.abc import Iterable

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
        "width": 900,
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
