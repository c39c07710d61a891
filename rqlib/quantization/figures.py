"""Figures of quantization: values of formats, weights, layers, accuracy against bits and against size."""

import plotly.graph_objects as go
import torch
from pandas import DataFrame
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

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


def layer_bars(similarity: DataFrame, sensitivity: DataFrame, measure: str, *, title: str = "") -> go.Figure:
    """For each layer: how far its weights moved (above), and what it costs to quantize that layer alone (below).

    Args:
        similarity: from `quantization.compare`, with a column named like the measure.
        sensitivity: the rows of `quantization.sweep(per_layer=True)` for one format.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    losses = sensitivity.set_index("layer").accuracy_loss.reindex(similarity.layer)
    columns = ((similarity[measure], measure.replace("_", " ")), (losses, "accuracy loss"))
    for row, (values, name) in enumerate(columns, start=1):
        bars = go.Bar(x=similarity.layer, y=values, hovertemplate="%{x}<br>" + name + " %{y:.4g}<extra></extra>")
        figure.add_trace(bars, row=row, col=1)
        figure.update_yaxes(title=name, row=row, col=1)
    figure.update_xaxes(tickangle=-60, tickfont={"size": 10})
    return figure.update_layout(title=title, showlegend=False, height=560)


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
    figure.update_xaxes(title="measured error of the logits", type="log")
    figure.update_yaxes(title="estimated from gradients", type="log")
    return figure.update_layout(title=title, height=480)


def accuracy_against_bits(sweep: DataFrame, *, title: str = "Accuracy against bits") -> go.Figure:
    """The rows of a sweep: one line for INT, one for POT, and one for each number of exponent bits of FLOAT."""
    figure = go.Figure()
    for name, rows, shade in _lines(sweep):
        line = go.Scatter(
            x=rows.bits,
            y=rows.accuracy,
            name=name,
            mode="lines+markers",
            line={"color": shade, "dash": "solid" if rows.kind.iloc[0] != "FLOAT" else "dot"},
            marker={"symbol": MARKERS[rows.kind.iloc[0]], "size": 9},
            customdata=rows.format,
            hovertemplate="%{customdata}<br>accuracy %{y:.4f}<extra></extra>",
        )
        figure.add_trace(line)
    _float_line(figure, sweep)
    figure.update_xaxes(title="bits per value", dtick=1)
    figure.update_yaxes(title="accuracy (fraction)", rangemode="tozero")
    return figure.update_layout(title=title, height=540)


def frontier(sweep: DataFrame, *, title: str = "Accuracy against size") -> go.Figure:
    """Accuracy of the rows of a sweep against the size of the weights; a line joins those that no smaller one beats.

    Of several formats with equal values only the first is drawn.
    """
    sweep = sweep[~sweep.duplicate_of.isin(sweep.format)]
    kib = sweep.coded_bits / 8 / 1024
    figure = go.Figure()
    for kind, rows in sweep.groupby("kind", sort=False):
        dots = go.Scatter(
            x=kib[rows.index],
            y=rows.accuracy,
            name=kind,
            mode="markers",
            marker={"symbol": MARKERS[kind], "size": 10, "color": plots.KINDS[kind]},
            customdata=rows.format,
            hovertemplate="%{customdata}<br>%{x:.1f} KiB<br>accuracy %{y:.4f}<extra></extra>",
        )
        figure.add_trace(dots)
    best = undominated(sweep)
    step = go.Scatter(x=kib[best.index], y=best.accuracy, name="undominated", mode="lines", line={"shape": "hv"})
    figure.add_trace(step.update(line_color="#888888", hoverinfo="skip"))
    label = {"showarrow": False, "textangle": -45, "xanchor": "left", "yanchor": "bottom", "yshift": 5, "font_size": 11}
    for index, row in best.iterrows():
        figure.add_annotation(x=kib[index], y=row.accuracy, text=row.format, **label)
    _float_line(figure, sweep)
    figure.update_xaxes(title="weights (KiB)")
    top = sweep[["accuracy", "float_accuracy"]].max().max()
    figure.update_yaxes(title="accuracy (fraction)", range=[0, 1.25 * top], tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1])
    return figure.update_layout(title=title, height=520)


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


def _float_line(figure: go.Figure, sweep: DataFrame) -> None:
    """A dashed line at the accuracy of the float network."""
    accuracy = sweep.float_accuracy.iloc[0]
    figure.add_hline(accuracy, line={"color": "#222222", "width": 1, "dash": "dash"})
    note = {"text": f"float {accuracy:.4f}", "showarrow": False, "yshift": 10, "font": {"size": 12}}
    figure.add_annotation(x=0, xref="paper", xanchor="left", y=accuracy, **note)
