"""Figures of attacks: pictures, accuracy against epsilon, transfer, the checks, loss and decisions on a plane.

And of the study of defenses: losses, accuracy before and after the attack, success against epsilon, feature maps.
"""

import math

import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from pandas import DataFrame
from pandas.io.formats.style import Styler
from plotly.subplots import make_subplots
from torch import Tensor, nn

from rqlib import measures
from rqlib.certification.figures import accuracy_ladder as accuracy_ladder
from rqlib.core import plots, runtime
from rqlib.data import datasets
from rqlib.defenses.figures import bound_over_measured as bound_over_measured
from rqlib.prediction.published import FLOAT
from rqlib.robustness import study_claims
from rqlib.robustness.defense_study import VARIANTS
from rqlib.robustness.quantized_networks import WAYS
from rqlib.training.figures import as_images
from rqlib.training.variants import LEAKY

STATUS = {"FAIL": "#F6CFC2", "WARN": "#FCEBC5", "PASS": "#D6EFE2", "SKIP": "#EEEEEE"}

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
    for place, heading in zip((0.14, 0.5, 0.86), ("image", "what the attack adds", "attacked image"), strict=True):
        style = {"xref": "paper", "yref": "paper", "y": 1, "yshift": 22, "yanchor": "bottom", "xanchor": "center"}
        figure.add_annotation(showarrow=False, text=f"<b>{heading}</b>", x=place, **style)
    for axis in range(1, 3 * len(x) + 1):
        figure.update_yaxes(scaleanchor=f"x{axis}", row=(axis + 2) // 3, col=(axis - 1) % 3 + 1)
    return figure.update_layout(title=title, width=760, height=110 + 230 * len(x), margin={"t": 110, "b": 10})


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
    return figure.update_layout(title=title, legend={"orientation": "h", "y": -0.25}, height=460)


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
    """The table of `robustness.diagnose`, with colored statuses: what fails first, what was skipped last."""
    order = table.status.map([*STATUS].index)
    shown = table.loc[order.sort_values(kind="stable").index].set_index("number")
    shown = shown[["name", "status", "value", "meaning"]].rename(columns={"meaning": "holds if it passes"})
    left = [("text-align", "left")]
    style = shown.style.set_properties(**dict(left)).set_table_styles([{"selector": "th", "props": left}])
    return style.map(lambda status: f"background-color: {STATUS[status]}; color: #222222", subset=["status"])


def loss_landscape(surface: DataFrame, *, title: str = "Loss around the images") -> go.Figure:
    """Mean loss on the plane of the steepest and a random direction; from `robustness.loss_surface`."""
    grid = surface.pivot(index="random", columns="gradient", values="loss")
    contour = go.Contour(
        z=grid.to_numpy(), x=list(grid.columns), y=list(grid.index),
        colorscale=plots.SCALE, colorbar={"title": "loss"},
        hovertemplate="%{x:.2f} steepest, %{y:.2f} random<br>loss %{z:.4f}<extra></extra>",
    )  # fmt: skip
    return _plane(go.Figure(contour), title)


def decision_map(
    plane: DataFrame, classes: tuple[str, ...], *, norm: str = "Linf", title: str = "Decisions around an image"
) -> go.Figure:
    """The network's answers on a plane through an image (the dot); from `robustness.decision_slice`.

    The white line is the part of the plane that lies in the ball of the ``norm``, whose radius is one epsilon: a
    diamond for Linf, because the two directions add up in some pixel, a circle for L2.
    """
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
    figure, corners = _plane(go.Figure(heatmap), title), 4 if norm == "Linf" else 120
    angles = [2 * math.pi * corner / corners for corner in range(corners + 1)]
    ball = {"x": [math.cos(angle) for angle in angles], "y": [math.sin(angle) for angle in angles]}
    return figure.add_scatter(**ball, mode="lines", line={"color": "white", "width": 2}, hoverinfo="skip")


def quantized_bars(table: DataFrame, *, title: str = "Quantized networks under attack") -> go.Figure:
    """Robust accuracy in float and in each format by the way of the attack, with 95% intervals over images (Wilson).

    ``table`` is from `robustness.quantized`.
    """
    figure = go.Figure()
    names = {"masked": "straight through, in range", "everywhere": "straight through, everywhere"}
    for column, shade in zip(("clean", *WAYS, "minimum"), _BARS, strict=True):
        name, (low, high) = names.get(column, column), measures.wilson(table[column], table.images)
        bars = go.Bar(x=table.format.replace(FLOAT, "float"), y=table[column], name=name, marker={"color": shade})
        reach = {"array": high - table[column], "arrayminus": table[column] - low, "symmetric": False, "thickness": 1}
        bars.update(error_y=reach, customdata=[*zip(low, high, strict=True)])
        hover = f"%{{x}}, {name}<br>%{{y:.4f}} (%{{customdata[0]:.3f}} to %{{customdata[1]:.3f}})<extra></extra>"
        figure.add_trace(bars.update(hovertemplate=hover))
    figure.update_xaxes(type="category", title="format")
    figure.update_yaxes(title="accuracy (fraction)", range=[0, 1.02])
    return figure.update_layout(title=title, barmode="group", legend={"orientation": "h", "y": -0.25}, height=460)


def losses_of_variants(history: DataFrame, epsilon_255: float, *, title: str = "While training") -> go.Figure:
    """Mean training loss of each variant against the epoch, with the range of its seeds.

    Args:
        history: of `robustness.histories`.
        epsilon_255: those trained at this radius are shown, and those trained at none.
    """
    figure = go.Figure()
    shown = history[history.trained_255.isna() | (history.trained_255 == epsilon_255)]
    for name, rows in _by_variant(shown):
        over = rows.groupby("epoch").loss.agg(["mean", "min", "max"])
        hover = f"{name}<br>epoch %{{x}}<br>loss %{{y:.4f}}<extra></extra>"
        figure.add_traces(_line_with_band(name, over.index, over["mean"], over["min"], over["max"], hover))
    figure.update_xaxes(title="epoch").update_yaxes(title="training loss (its own objective)", type="log")
    return figure.update_layout(title=title, legend={"orientation": "h", "y": -0.22}, height=520)


def before_and_after(table: DataFrame, tests: DataFrame, *, title: str = "Accuracy before and after") -> go.Figure:
    """Clean and robust accuracy of every variant, one row of bars per radius, with 95% intervals over seeds.

    The stars stand for p after Holm's correction, against ``original``: *** < 0.01, ** < 0.05, * < 0.1.

    Args:
        table: of `robustness.study`.
        tests: of `robustness.families`.
    """
    radii = sorted(table.epsilon_255.unique())
    names = [f"epsilon {radius:g}/255" for radius in radii]
    figure = make_subplots(rows=len(radii), cols=1, shared_xaxes=True, subplot_titles=names, vertical_spacing=0.08)
    for row, radius in enumerate(radii, start=1):
        groups = list(_by_variant(table[table.epsilon_255 == radius]))
        for column, shade in (("clean_accuracy", _BARS[0]), ("robust_accuracy", _BARS[4])):
            means, halves = zip(*(_mean_and_half(rows[column]) for _, rows in groups), strict=True)
            shown = [_stars(tests, column, name, radius) for name, _ in groups]
            bars = go.Bar(x=[name for name, _ in groups], y=means, name=column.replace("_", " "), text=shown)
            bars.update(error_y=plots.error_bars(means, halves), customdata=halves, marker={"color": shade})
            bars.update(textposition="inside", insidetextanchor="start", textangle=-90)
            bars.update(textfont={"color": "#222222", "size": 17}, constraintext="none")
            bars.update(hovertemplate="%{x}<br>%{y:.4f} ± %{customdata:.4f} %{text}<extra></extra>")
            figure.add_trace(bars.update(showlegend=row == 1, legendgroup=column), row=row, col=1)
    figure.update_yaxes(title="fraction", range=[0, 1.05]).update_xaxes(tickangle=-40, type="category")
    legend = {"orientation": "h", "y": -85 / (210 * len(radii))}  # below the names of the variants
    return figure.update_layout(title=title, barmode="group", legend=legend, height=190 + 210 * len(radii))


def success_against_epsilon(table: DataFrame, *, title: str = "Success of the attack") -> go.Figure:
    """Mean success rate of the attack on each variant against the radius, with 95% intervals over seeds.

    Variants that are trained under attack were trained at the radius at which they are attacked.

    Args:
        table: of `robustness.study`.
    """
    figure = go.Figure()
    for name, rows in _by_variant(table):
        over = {radius: _mean_and_half(group.success_rate) for radius, group in rows.groupby("epsilon_255")}
        mean = [middle for middle, _ in over.values()]
        low, high = ([middle + sign * (half or 0) for middle, half in over.values()] for sign in (-1, 1))
        hover = f"{name}<br>%{{x:g}}/255<br>success rate %{{y:.4f}}<extra></extra>"
        figure.add_traces(_line_with_band(name, list(over), mean, low, high, hover))
    figure.update_xaxes(title="epsilon (gray levels of 255)", tickvals=sorted(table.epsilon_255.unique()))
    figure.update_yaxes(title="success rate (fraction)", range=[-0.02, 1.02])
    return figure.update_layout(title=title, legend={"orientation": "h", "y": -0.22}, height=520)


def feature_maps_of(maps: dict[str, Tensor], *, channels: int = 8, title: str = "What they see") -> go.Figure:
    """The first channels of one layer for one image: one row per variant, every channel scaled to its own range.

    Args:
        maps: variant -> (C, H, W), of `robustness.convolution_outputs`.
    """
    rows = [plots.strip(as_images(one[:channels]), channels) for one in maps.values()]
    figure, height = plots.picture(torch.cat(rows, dim=1)), rows[0].shape[1]
    ticks = {"tickvals": [height * (row + 0.5) for row in range(len(rows))], "ticktext": list(maps)}
    figure.update_yaxes(visible=True, showline=False, ticks="", **ticks)
    return figure.update_layout(title=title, width=130 + 56 * channels, height=90 + 56 * len(rows))


def _by_variant(rows: DataFrame):
    """(variant, its rows), in the order of the study."""
    present = dict.fromkeys(rows.variant)
    order = [*(name for name in VARIANTS if name in present), *(name for name in present if name not in VARIANTS)]
    return [(name, rows[rows.variant == name]) for name in order]


def _mean_and_half(values) -> tuple[float, float | None]:
    """Mean over seeds, and half of its 95% interval (Student); None with one seed."""
    return values.mean(), measures.student(values) if len(values) > 1 else None


def _stars(tests: DataFrame, column: str, variant: str, radius: float) -> str:
    """The stars of a test against ``original``: of the radius, or of no radius (NaN) for clean accuracy."""
    family = study_claims.CLEAN if column == "clean_accuracy" else study_claims.ROBUST
    found = tests[(tests.family == family) & (tests.variant == variant)] if len(tests) else tests
    found = found[found.epsilon_255.isna() | (found.epsilon_255 == radius)] if len(found) else found
    return found.stars.iloc[0] if len(found) else ""


def _line_with_band(name: str, x, middle, low, high, hover: str) -> list[go.Scatter]:
    """A line in the color of the variant, above a band of the same color."""
    names, x = (*VARIANTS, LEAKY), list(x)
    shade = plots.color(name, names)
    band = go.Scatter(x=[*x, *x[::-1]], y=[*high, *list(low)[::-1]], fill="toself", fillcolor=shade, mode="lines")
    band.update(line={"width": 0}, opacity=0.15, hoverinfo="skip", showlegend=False, legendgroup=name)
    line = go.Scatter(
        x=x, y=list(middle), name=name, mode="lines+markers", line={"color": shade, "dash": plots.dash(name, names)}
    )
    return [band, line.update(hovertemplate=hover, legendgroup=name)]


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
