"""Figures of quantization: values of formats, weights, layers, accuracy against bits and against size."""

import math

import plotly.graph_objects as go
import torch
from pandas import DataFrame, Series
from plotly.colors import sample_colorscale
from torch import Tensor

from rqlib import measures
from rqlib.core import plots
from rqlib.quantization.choosing import undominated
from rqlib.quantization.formats import Format

MARKERS = {"INT": "circle", "POT": "diamond", "FLOAT": "square"}


def number_lines(formats: list[Format], *, title: str = "The values of each format") -> go.Figure:
    """The values of each format, each scaled so that its largest is 1."""
    figure = go.Figure()
    for format in formats:
        values = (format.levels / format.max).tolist()
        ticks = go.Scatter(
            x=values,
            y=[format.name] * len(values),
            mode="markers",
            marker={"symbol": "line-ns", "size": 18, "line": {"width": 1.2, "color": plots.KINDS[format.kind]}},
            hovertemplate=f"{format.name}<br>%{{x:.5g}} of the largest<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(ticks)
    figure.update_xaxes(title="value / largest value", range=[-1.03, 1.03])
    figure.update_yaxes(type="category", autorange="reversed")
    return figure.update_layout(title=title, height=130 + 38 * len(formats))


def weight_histogram(weight: Tensor, quantized: Tensor, *, bins: int = 201, title: str = "") -> go.Figure:
    """Histogram of the weights of a layer before and after rounding, with counts on a logarithmic axis."""
    reach = max(weight.abs().max().item(), quantized.abs().max().item()) or 1.0
    figure = go.Figure()
    for values, name, shade in ((weight, "float", plots.PALETTE[5]), (quantized, "quantized", plots.PALETTE[1])):
        counts = torch.histc(values.float(), bins, -reach, reach)
        centers = torch.linspace(-reach, reach, 2 * bins + 1)[1::2]
        shown = counts > 0
        bars = go.Bar(
            x=centers[shown].tolist(),
            y=counts[shown].tolist(),
            width=2 * reach / bins,
            name=name,
            marker={"color": shade, "line": {"width": 0}},
            opacity=0.75,
            hovertemplate=f"{name} %{{x:.4g}}<br>%{{y:,}} weights<extra></extra>",
        )
        figure.add_trace(bars)
    figure.update_xaxes(title="weight (BatchNorm folded)")
    figure.update_yaxes(title="weights", type="log", dtick=1)
    return figure.update_layout(title=title, barmode="overlay", height=440)


def sensitivity_map(sensitivity: DataFrame, *, title: str = "") -> go.Figure:
    """What it costs to quantize one layer alone: one row per layer, one column per format, losses relative to float.

    ``sensitivity`` is from `quantization.sweep(per_layer=True)`.
    """
    table = sensitivity.pivot(index="layer", columns="format", values="accuracy_loss")
    table = table.reindex(index=sensitivity.layer.unique(), columns=sensitivity.format.unique())
    heatmap = go.Heatmap(
        z=table.to_numpy(),
        x=list(table.columns),
        y=list(table.index),
        zmin=0,
        zmax=max(0.05, table.max().max()),
        colorscale=plots.SCALE,
        colorbar={"title": "relative<br>loss", "tickformat": ".0%"},
        texttemplate="%{z:.1%}",
        hovertemplate="%{y} alone in %{x}<br>loses %{z:.2%} of the accuracy<extra></extra>",
    )
    figure = go.Figure(heatmap)
    figure.update_xaxes(title="format of this layer alone", type="category")
    figure.update_yaxes(type="category", autorange="reversed", tickfont={"size": 11})
    return figure.update_layout(title=title, height=170 + 26 * len(table))


def estimated_against_measured(estimated: DataFrame, measured: DataFrame, *, title: str = "") -> go.Figure:
    """The estimated against the measured logit error of every layer and format, on logarithmic axes."""
    both = measured.merge(estimated, on=["layer", "format"], suffixes=("", "_estimated"))
    both = both[(both.logit_error > 0) & (both.logit_error_estimated > 0)]
    figure = go.Figure()
    for number, (name, rows) in enumerate(both.groupby("format", sort=False)):
        dots = go.Scatter(
            x=rows.logit_error,
            y=rows.logit_error_estimated,
            name=name,
            mode="markers",
            marker={"size": 9, "color": plots.PALETTE[number % len(plots.PALETTE)]},
            customdata=rows.layer,
            hovertemplate=f"%{{customdata}} in {name}<br>measured %{{x:.2g}}<br>estimated %{{y:.2g}}<extra></extra>",
        )
        figure.add_trace(dots)
    ends = [both.logit_error.min(), both.logit_error.max()]
    line = {"color": "#888888", "width": 1, "dash": "dash"}
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=line, name="equal", hoverinfo="skip"))
    figure.update_xaxes(title="measured error of the logits", **plots.DECADES)
    figure.update_yaxes(title="estimated from gradients", **plots.DECADES)
    return figure.update_layout(title=title, height=480)


def accuracy_against_bits(sweep: DataFrame, images: int, *, title: str = "Accuracy against bits") -> go.Figure:
    """The rows of a sweep: one line for INT, one for POT, and one for each number of exponent bits of FLOAT.

    Bars are 95% intervals over the ``images`` that were scored (Wilson); the axis is `plots.accuracy_axis`.
    """
    figure = go.Figure()
    for name, rows, shade in _lines(sweep):
        kind = rows.kind.iloc[0]
        line = _scored(rows, rows.bits, images, MARKERS[kind], shade)
        dash = {"color": shade, "dash": "solid" if kind != "FLOAT" else "dot"}
        figure.add_trace(line.update(name=name, mode="lines+markers", line=dash))
    _float_line(figure, sweep, images)
    figure.update_xaxes(title="bits per value", dtick=1)
    return plots.accuracy_axis(figure, images).update_layout(title=title, height=540)


def frontier(sweep: DataFrame, images: int, *, title: str = "Accuracy against size") -> go.Figure:
    """Accuracy of the rows of a sweep against the size of the weights; a line joins those that no smaller one beats.

    Of several formats with equal values only the first is drawn. The float network stands at 32 bits. The undominated
    ones have 95% intervals over the ``images`` that were scored (Wilson); the axis is `plots.accuracy_axis`.
    """
    sweep = sweep[~sweep.duplicate_of.isin(sweep.format)]
    kib = sweep.coded_bits / 8 / 1024
    figure = go.Figure()
    for kind, rows in sweep.groupby("kind", sort=False):
        dots = _scored(rows, kib[rows.index], images, MARKERS[kind], plots.KINDS[kind])
        figure.add_trace(dots.update(name=kind, mode="markers", error_y_visible=False))
    best = undominated(sweep)
    line = {"x": kib[best.index], "y": plots.errors(best.accuracy, images), "line": {"shape": "hv", "color": "#888888"}}
    figure.add_scatter(**line, name="undominated", mode="lines", hoverinfo="skip", error_y=_interval(best, images))
    whole = sweep.head(1).assign(format="float32", accuracy=sweep.float_accuracy)
    dots = _scored(whole, 32 * kib[whole.index] / whole.bits, images, "star", "#222222")
    figure.add_trace(dots.update(name="float32", mode="markers"))
    label = {"showarrow": False, "textangle": 40, "xanchor": "left", "yanchor": "top", "yshift": -6, "font_size": 11}
    for index, row in best.iterrows():
        figure.add_annotation(x=kib[index], y=math.log10(plots.errors(row.accuracy, images)), text=row.format, **label)
    _float_line(figure, sweep, images)
    figure.update_xaxes(title="weights (KiB)", rangemode="tozero")
    return plots.accuracy_axis(figure, images).update_layout(title=title, height=520)


def _interval(rows: DataFrame, images: int) -> dict:
    """Error bars of rows of a sweep, on the axis of `plots.accuracy_axis`."""
    low, high = measures.wilson(rows.accuracy, images)
    y = plots.errors(rows.accuracy, images)
    reach = {"array": 1 - low - y, "arrayminus": (y - plots.errors(high, images)).clip(lower=0)}
    return reach | {"symmetric": False, "thickness": 0.8, "width": 2}


def _scored(rows: DataFrame, x: Series, images: int, symbol: str, shade: str) -> go.Scatter:
    """Rows of a sweep as markers at their accuracy, with intervals over images."""
    low, high = measures.wilson(rows.accuracy, images)
    return go.Scatter(
        x=x,
        y=plots.errors(rows.accuracy, images),
        marker={"symbol": symbol, "size": 9, "color": shade},
        error_y=_interval(rows, images) | {"color": shade},
        customdata=[*zip(rows.format, rows.accuracy, low, high, strict=True)],
        hovertemplate="%{customdata[0]}<br>accuracy %{customdata[1]:.4f} (%{customdata[2]:.3f} to "
        "%{customdata[3]:.3f})<br>%{x:.4g}<extra></extra>",
    )


def _lines(sweep: DataFrame):
    """(name, rows, color) of each line; those of FLOAT in order of their exponent bits."""
    for kind in ("INT", "POT"):
        if (sweep.kind == kind).any():
            yield kind, sweep[sweep.kind == kind], plots.KINDS[kind]
    floats = sweep[sweep.kind == "FLOAT"]
    exponents = sorted(floats.exponent_bits.unique())
    shades = sample_colorscale("Viridis", [0.9 * index / max(len(exponents) - 1, 1) for index in range(len(exponents))])
    for exponent, shade in zip(exponents, shades, strict=True):
        rows = floats[floats.exponent_bits == exponent]
        yield f"FLOAT, {exponent} exponent {'bit' if exponent == 1 else 'bits'}", rows.sort_values("bits"), shade


def _float_line(figure: go.Figure, sweep: DataFrame, images: int) -> None:
    """A dashed line at the accuracy of the float network."""
    accuracy = sweep.float_accuracy.iloc[0]
    y = plots.errors(accuracy, images)
    figure.add_hline(y, line={"color": "#222222", "width": 1, "dash": "dash"})
    note = {"text": f"float {accuracy:.4f}", "showarrow": False, "yshift": 10, "font": {"size": 12}}
    figure.add_annotation(x=1, xref="paper", xanchor="right", y=math.log10(y), **note)
