"""Figures of attacks: pictures, accuracy against epsilon, transfer, the checks, loss and decisions on a plane."""

import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from pandas import DataFrame
from pandas.io.formats.style import Styler
from plotly.subplots import make_subplots
from torch import Tensor, nn

from rqlib.core import plots, runtime
from rqlib.data import datasets

STATUS = {"PASS": "#D6EFE2", "WARN": "#FCEBC5", "FAIL": "#F6CFC2", "SKIP": "#EEEEEE"}

_BARS = ("#BBBBBB", plots.PALETTE[0], plots.PALETTE[5], plots.PALETTE[4], plots.PALETTE[1])


def attack_pictures(
    model: nn.Module, x: Tensor, adversarial: Tensor, labels: Tensor, classes: tuple[str, ...], *, title: str = ""
) -> go.Figure:
    """One row per image: the image, what the attack adds (scaled to the full range), and the attacked image.

    The network's answers stand above the first and the last. There may be at most 8 images (N, C, H, W) in [0, 1].
    """
    before, after = (_answers(model, batch, labels, classes) for batch in (x, adversarial))
    delta = (adversarial - x).cpu()
    largest = delta.abs().flatten(1).amax(1)
    shown = 0.5 + delta / (2 * largest.clamp(min=1e-12).view(-1, 1, 1, 1))
    words = [f"at most {255 * size:.3g} gray levels" for size in largest]
    columns = [(x.cpu(), before), (shown, words), (adversarial.cpu(), after)]
    texts = [text for trio in zip(*(texts for _, texts in columns), strict=True) for text in trio]
    figure = make_subplots(rows=len(x), cols=3, subplot_titles=texts, vertical_spacing=0.22 / len(x))
    for column, (batch, _) in enumerate(columns, start=1):
        for row, image in enumerate(_enlarged(batch), start=1):
            figure.add_traces(plots.picture(image).data, rows=row, cols=column)
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False, autorange="reversed")
    for axis in range(1, 3 * len(x) + 1):
        figure.update_yaxes(scaleanchor=f"x{axis}", row=(axis + 2) // 3, col=(axis - 1) % 3 + 1)
    return figure.update_layout(title=title, width=760, height=90 + 230 * len(x), margin={"t": 90, "b": 10})


def accuracy_against_epsilon(curve: DataFrame, *, title: str = "Accuracy against epsilon") -> go.Figure:
    """Accuracy with 95% bands, and success rate, of every attack; from `robustness.against_epsilon`."""
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for shade, (name, rows) in zip(plots.PALETTE, curve.groupby("attack", sort=False), strict=False):
        x = rows.epsilon_255
        band = go.Scatter(x=[*x, *x[::-1]], y=[*rows.high, *rows.low[::-1]], fill="toself", fillcolor=shade)
        band.update(mode="lines", line={"width": 0}, opacity=0.15, hoverinfo="skip", showlegend=False)
        figure.add_trace(band, row=1, col=1)
        for column, value in enumerate(("accuracy", "success_rate"), start=1):
            line = go.Scatter(x=x, y=rows[value], name=name, mode="lines+markers", line={"color": shade})
            line.update(hovertemplate=f"{name}, %{{x:g}}/255<br>{value} %{{y:.4f}}<extra></extra>")
            figure.add_trace(line.update(showlegend=column == 1), row=1, col=column)
    figure.update_xaxes(title="epsilon (gray levels of 255)").update_yaxes(range=[-0.02, 1.02])
    figure.update_yaxes(title="accuracy (fraction of all)", row=1, col=1)
    figure.update_yaxes(title="success rate (fraction)", row=1, col=2)
    return figure.update_layout(title=title, legend={"orientation": "h", "y": -0.25}, width=980, height=460)


def transfer_heatmap(matrix: DataFrame, *, title: str = "Transfer") -> go.Figure:
    """Accuracy of each network (column) on images attacked on each (row); from `robustness.transfer`."""
    heatmap = go.Heatmap(
        z=matrix.to_numpy(), x=list(matrix.columns), y=list(matrix.index), zmin=0, zmax=1,
        colorscale=plots.SCALE, colorbar={"title": "accuracy"}, texttemplate="%{z:.2f}",
        hovertemplate="attacked on %{y}<br>answered by %{x}: %{z:.4f}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heatmap)
    figure.update_xaxes(title="answered by", type="category", tickangle=-25)
    figure.update_yaxes(title={"text": "attacked on", "standoff": 12}, type="category", autorange="reversed")
    return figure.update_layout(title=title, width=760, height=250 + 70 * len(matrix))


def checks(table: DataFrame) -> Styler:
    """The table of `robustness.diagnose`, with colored statuses."""
    shown = table.set_index("number")[["name", "status", "value", "meaning"]]
    return shown.style.map(lambda status: f"background-color: {STATUS[status]}; color: #222222", subset=["status"])


def loss_landscape(surface: DataFrame, *, title: str = "Loss around the images") -> go.Figure:
    """Mean loss on the plane of the steepest and a random direction; from `robustness.loss_surface`."""
    grid = surface.pivot(index="random", columns="gradient", values="loss")
    contour = go.Contour(
        z=grid.to_numpy(), x=list(grid.columns), y=list(grid.index),
        colorscale=plots.SCALE, colorbar={"title": "loss"},
        hovertemplate="%{x:.2f} steepest, %{y:.2f} random<br>loss %{z:.4f}<extra></extra>",
    )  # fmt: skip
    return _plane(go.Figure(contour), title)


def decision_map(plane: DataFrame, classes: tuple[str, ...], *, title: str = "Decisions around an image") -> go.Figure:
    """The network's answers on a plane through an image (the dot); from `robustness.decision_slice`."""
    grid = plane.pivot(index="random", columns="gradient", values="prediction")
    present = sorted(plane.prediction.unique())
    shades = [plots.PALETTE[index % len(plots.PALETTE)] for index in range(len(present))]
    position = {name: index for index, name in enumerate(present)}
    edges = [edge for index in range(len(present)) for edge in (index / len(present), (index + 1) / len(present))]
    scale = [[edge, shades[min(int(index / 2), len(shades) - 1)]] for index, edge in enumerate(edges)]
    bar = {"title": "answer", "tickvals": [*range(len(present))], "ticktext": [classes[index] for index in present]}
    heatmap = go.Heatmap(
        z=grid.map(position.get).to_numpy(), x=list(grid.columns), y=list(grid.index),
        zmin=-0.5, zmax=len(present) - 0.5, colorscale=scale, colorbar=bar,
        customdata=grid.map(lambda index: classes[index]).to_numpy(),
        hovertemplate="%{x:.2f} steepest, %{y:.2f} random<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    return _plane(go.Figure(heatmap), title)


def quantized_bars(table: DataFrame, *, title: str = "Quantized networks under attack") -> go.Figure:
    """Robust accuracy of each format by the way in which it was attacked; from `robustness.quantized`."""
    figure = go.Figure()
    names = {"masked": "straight through, in range", "everywhere": "straight through, everywhere"}
    for column, shade in zip(("clean", "masked", "everywhere", "transfer", "minimum"), _BARS, strict=True):
        name = names.get(column, column)
        bars = go.Bar(x=table.format, y=table[column], name=name, marker={"color": shade})
        figure.add_trace(bars.update(hovertemplate=f"%{{x}}, {name}<br>%{{y:.4f}}<extra></extra>"))
    figure.update_xaxes(type="category", title="format")
    figure.update_yaxes(title="accuracy (fraction)", range=[0, 1])
    return figure.update_layout(title=title, barmode="group", legend={"orientation": "h", "y": -0.25}, height=460)


def _plane(figure: go.Figure, title: str) -> go.Figure:
    figure.add_trace(go.Scatter(x=[0], y=[0], mode="markers", marker={"color": "white", "size": 9}, hoverinfo="skip"))
    figure.data[-1].marker.line = {"color": "#222222", "width": 2}
    figure.update_xaxes(title="along the steepest direction (epsilons)")
    figure.update_yaxes(title="along a random direction (epsilons)")
    return figure.update_layout(title=title, width=720, height=560, showlegend=False)


@torch.no_grad()
def _answers(model: nn.Module, x: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    with runtime.evaluating(model):
        confidences, answers = model(x).float().softmax(1).max(1)
    triples = zip(confidences.tolist(), answers.tolist(), labels.tolist(), strict=True)
    return [f"{classes[k]}, {p:.0%}{'' if k == y else f' (is {classes[y]})'}" for p, k, y in triples]


def _enlarged(batch: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> uint8; the pixels of small images are repeated until they are large enough to see."""
    pixels = datasets.to_uint8(batch)
    return F.interpolate(pixels, scale_factor=max(1, 192 // pixels.shape[-1]), mode="nearest")
