"""Figures of defenses: what activations do, what they cost, and how far bounds lie above measured ratios."""

import plotly.graph_objects as go
import torch
from pandas import DataFrame
from plotly.subplots import make_subplots
from torch import Tensor

from rqlib.core import plots
from rqlib.defenses.measured_ratios import LOGITS

ORDER = ("ReLU", "DTReLU", "DDTReLU", "jacob_ema")
"""What has these names, whatever its bits, has one color each."""
BELOW = {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0}
"""The place of a legend: below the figure."""
MARKS = {
    "bound": ("line-ns", plots.PALETTE[6]),
    "jacobian": ("diamond", plots.PALETTE[2]),
    "pgd": ("circle", plots.PALETTE[1]),
    "random": ("circle-open", plots.PALETTE[0]),
}
WORDS = {"bound": "bound", "jacobian": "Jacobian at the images", "pgd": "PGD", "random": "random directions"}


def activation_curves(curves: DataFrame, signal: Tensor, *, title: str = "What activations do") -> go.Figure:
    """The output of each activation against its input, over the density of the signal.

    Args:
        curves: from `activation_signals.curves`.
        signal: (values,), the signal that they were made for.
    """
    low, high = curves.input.min(), curves.input.max()
    counts = torch.histc(signal.float().cpu(), 120, low, high)
    centers = torch.linspace(low, high, 241)[1::2]
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    density = go.Scatter(x=centers.tolist(), y=(counts / counts.max()).tolist(), name="density of the signal")
    density.update(fill="tozeroy", line={"width": 0, "shape": "hvh"}, fillcolor="rgba(187,187,187,0.45)")
    figure.add_trace(density.update(hoverinfo="skip"), secondary_y=False)
    for name, rows in curves.groupby("activation", sort=False):
        line = go.Scatter(x=rows.input, y=rows.output, name=name, mode="lines", line=_line(name, wide=True))
        line.update(hovertemplate=f"{name}<br>%{{x:.3g}} becomes %{{y:.3g}}<extra></extra>")
        figure.add_trace(line, secondary_y=True)
    figure.update_xaxes(title="input of the activation", range=[low, high])
    figure.update_yaxes(title="output of the activation", side="left", tickmode="auto", secondary_y=True)
    figure.update_yaxes(visible=False, range=[0, 1.6], secondary_y=False)
    return figure.update_layout(title=title, height=540, legend=BELOW)


def cost_against_size(costs: DataFrame, *, title: str = "What activations cost") -> go.Figure:
    """Seconds forward and backward against the number of elements; from `activation_costs.costs`. Logarithmic axes."""
    figure = go.Figure()
    for name, rows in costs.groupby("activation", sort=False):
        line = go.Scatter(x=rows.elements, y=rows.seconds, name=name, mode="lines+markers", line=_line(name))
        line.update(hovertemplate=f"{name}, %{{x:,}} elements<br>%{{y:.3g}} s<extra></extra>")
        figure.add_trace(line)
    figure.update_xaxes(title="elements", type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title="seconds, both passes", type="log", dtick=1, exponentformat="power")
    return figure.update_layout(title=title, legend=BELOW)


def bound_over_measured(rows: DataFrame, *, title: str = "Bound against measured ratios") -> go.Figure:
    """For each variant: the bound of the logits and the largest ratios measured, on a logarithmic axis.

    Beside the name stands how many times the bound is above the largest ratio of all.

    Args:
        rows: tables of `measured_ratios.ratios` under each other, with a column ``variant``. Only the logits are drawn;
            of several sizes or seeds the largest ratio, and the bound that belongs to it.
    """
    logits = rows[rows.name == LOGITS].reset_index(drop=True)
    worst = logits.loc[logits.groupby("variant", sort=False).largest.idxmax()].set_index("variant")
    labels = {name: f"{name}, {_three_digits(row.bound / row.largest)} times" for name, row in worst.iterrows()}
    largest = logits.groupby(["perturbation", "variant"], sort=False).largest.max()
    figure = go.Figure()
    for kind, (symbol, shade) in MARKS.items():
        own = worst.bound if kind == "bound" else largest.get(kind, worst.bound[:0])
        marker = {"symbol": symbol, "size": 22 if kind == "bound" else 11, "color": shade}
        dots = go.Scatter(x=own, y=own.index.map(labels), name=WORDS[kind], mode="markers", marker=marker)
        dots.update(marker_line={"width": 3, "color": shade})
        figure.add_trace(dots.update(hovertemplate=f"%{{y}}<br>{WORDS[kind]} %{{x:.4g}}<extra></extra>"))
    figure.update_xaxes(title="change of logits / of image, l2", title_font_size=13, type="log", dtick=1)
    figure.update_yaxes(type="category", autorange="reversed", categoryarray=list(labels.values()))
    return figure.update_layout(
        title=title, height=240 + 42 * len(labels), legend=BELOW | {"y": -90 / (42 * len(labels))}
    )


def _three_digits(x: float) -> str:
    """``4,870`` for 4,868.3, ``19.5`` for 19.52."""
    return f"{float(f'{x:.3g}'):,.10g}"


def _line(name: str, *, wide: bool = False) -> dict:
    """Color and dash of an activation, by its kind; a wide DTReLU is seen behind others, a trained one before them."""
    if name.endswith("trained"):
        return {"color": plots.PALETTE[3], "dash": "dot", "width": 3}
    kind = next((kind for kind in sorted(ORDER, key=len, reverse=True) if name.startswith(kind)), name)
    dash = "dot" if name.endswith("loop") else "dash" if kind == "jacob_ema" else "solid"
    shade = plots.PALETTE[6] if kind == "ReLU" else plots.color(kind, ORDER[1:])
    return {"color": shade, "dash": dash, "width": 5 if kind == "DTReLU" and wide else 2}
