"""Figures of pruning: accuracy against what is kept and against true size, weights that stay, hidden networks."""

import functools
import math

import plotly.graph_objects as go
import torch
from pandas import DataFrame, Series
from plotly.subplots import make_subplots
from torch import Tensor

from rqlib import measures
from rqlib.certification.cascade import LADDER
from rqlib.certification.figures import smoothed_accuracy as smoothed_accuracy
from rqlib.core import plots
from rqlib.pruning.certificates import FLOAT, title_of
from rqlib.pruning.rivals import DENSE

METHODS = {"lwm": "LWM", "hydra": "HYDRA", "admm": "ADMM", "multi_step": "multi-step", "scratch": "from scratch"}
"""Method -> its name in figures. The order determines the colors."""
SCORES = {"clean_accuracy": "clean accuracy", "robust_accuracy": "robust accuracy (PGD)"}

RIVALS = ("NAP", "AP", "Al0", "ALR", "ATMC-32", "ATMC-8", "masked_qat")
"""Rivals in the order of their colors. From another start, ``NAME-svd``, a rival has the same color, dotted."""


def accuracy_against_kept(rows: DataFrame, *, title: str = "Accuracy against what is kept") -> go.Figure:
    """Clean and robust accuracy of every method: lines are means over seeds, error bars their 95% t intervals.

    The rows have the columns kept, method, clean_accuracy, robust_accuracy. Those of the method ``dense`` become a
    dashed line; those of methods that are not in `METHODS` are not drawn.
    """
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(SCORES.values()), horizontal_spacing=0.1)
    for column, score in enumerate(SCORES, start=1):
        for method in [name for name in METHODS if (rows.method == name).any()]:
            line = _line(mean_over_seeds(rows[rows.method == method], score), method, showlegend=column == 1)
            figure.add_trace(line, row=1, col=column)
        if (dense := rows.method == "dense").any():
            line = _before(rows[dense][score].mean(), rows[~dense].kept, showlegend=column == 1)
            figure.add_trace(line, row=1, col=column)
    shares = sorted(rows[rows.method != "dense"].kept.unique())
    ticks = {"tickvals": shares, "ticktext": [f"{k:g}" for k in shares]}
    figure.update_xaxes(title="weights kept (fraction)", type="log", **ticks)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title="accuracy (fraction)", col=1)
    return figure.update_layout(title=title, height=480, margin={"t": 90})


def _before(accuracy: float, along: Series, *, showlegend: bool) -> go.Scatter:
    """A dashed line, from end to end, at the accuracy of the network that nothing was removed from."""
    ends, line = [along.min(), along.max()], {"color": "#222222", "width": 1, "dash": "dash"}
    style = {"mode": "lines", "line": line, "name": "before", "legendgroup": "before", "showlegend": showlegend}
    return go.Scatter(x=ends, y=[accuracy] * 2, hovertemplate="before: %{y:.4f}<extra></extra>", **style)


def mean_over_seeds(rows: DataFrame, score: str) -> DataFrame:
    """One row per kept fraction: kept, mean, half (of the 95% t interval, NaN for one seed), count (of seeds)."""
    return rows.groupby("kept")[score].agg(mean="mean", half=measures.student, count="count").reset_index()


def _line(found: DataFrame, method: str, *, showlegend: bool) -> go.Scatter:
    shade = plots.PALETTE[list(METHODS).index(method)]
    return go.Scatter(
        x=found.kept,
        y=found["mean"],
        name=METHODS[method],
        legendgroup=method,
        showlegend=showlegend,
        mode="lines+markers",
        line={"color": shade, "dash": "dot" if method == "scratch" else "solid"},
        error_y=plots.error_bars(found["mean"], found.half),
        customdata=found["count"],
        hovertemplate=f"{METHODS[method]}, kept %{{x:g}}<br>%{{y:.4f}} over %{{customdata}} seeds<extra></extra>",
    )


def accuracy_against_size(rows: DataFrame, *, title: str = "Accuracy against true size") -> go.Figure:
    """Clean and robust accuracy of every rival against the compression of its file, on a logarithmic axis.

    Lines are means over seeds, error bars their 95% t intervals. The dashed line is the dense adversarial network.

    Args:
        rows: of `comparison.compare`, of one or more seeds; rows without file_ratio are not drawn.
    """
    rows = rows[rows.file_ratio.notna()]
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(SCORES.values()), horizontal_spacing=0.1)
    for column, score in enumerate(SCORES, start=1):
        for rival in [name for name in dict.fromkeys(rows.method) if name != DENSE]:
            line = _line_of_rival(rows[rows.method == rival], rival, score, showlegend=column == 1)
            figure.add_trace(line, row=1, col=column)
        if (dense := rows.method == DENSE).any():
            line = _before(rows[dense][score].mean(), rows[~dense].file_ratio, showlegend=column == 1)
            figure.add_trace(line, row=1, col=column)
    ticks = [2**power for power in range(1, 11)]
    figure.update_xaxes(title="compression (dense file / file)", type="log", tickvals=ticks, ticktext=ticks)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title="accuracy (fraction)", col=1)
    return figure.update_layout(title=title, height=500, margin={"t": 90})


def _line_of_rival(rows: DataFrame, rival: str, score: str, *, showlegend: bool) -> go.Scatter:
    ratios = rows.groupby("kept").file_ratio.mean().rename("ratio").reset_index()
    found = mean_over_seeds(rows, score).merge(ratios, on="kept").sort_values("ratio")
    name, other = rival.removesuffix("-svd"), rival.endswith("-svd")
    return go.Scatter(
        x=found.ratio,
        y=found["mean"],
        name=rival,
        legendgroup=rival,
        showlegend=showlegend,
        mode="lines+markers",
        line={"color": plots.color(name, RIVALS), "dash": "dot" if other else "solid"},
        error_y=plots.error_bars(found["mean"], found.half),
        customdata=found[["kept", "count"]],
        hovertemplate=f"{rival}, %{{x:.1f}} times smaller, kept %{{customdata[0]:g}}<br>"
        "%{y:.4f} over %{customdata[1]} seeds<extra></extra>",
    )


def certified_against_radius(table: DataFrame, *, title: str = "Withstands, and proved to withstand") -> go.Figure:
    """Accuracy under PGD, and what the closest bound certifies, against the radius; from `certificates.certified`.

    One color per network; in an INT format its line is dashed.
    """
    closest = next(name for name in LADDER[2:] if name in table)
    titles = {"PGD": "withstand PGD", closest: f"certified by {closest}"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(titles.values()), shared_yaxes=True)
    names = Series(map(title_of, table.method, table.kept), table.index, name="name")
    networks = dict.fromkeys(names)
    for (name, form), rows in table.sort_values("epsilon_255", kind="stable").groupby([names, "format"], sort=False):
        label = name if form == FLOAT else f"{name} {form}"
        for column, score in enumerate(titles, start=1):
            line = go.Scatter(x=rows.epsilon_255, y=rows[score], name=label, legendgroup=label, mode="lines+markers")
            shade = {"color": plots.color(name, networks), "dash": "solid" if form == FLOAT else "dash"}
            hover = f"{label}, %{{x:g}}/255: %{{y:.4f}}<extra></extra>"
            figure.add_trace(line.update(line=shade, hovertemplate=hover, showlegend=column == 1), row=1, col=column)
    figure.update_xaxes(title="L∞ radius (gray levels of 255)")
    figure.update_yaxes(title="accuracy (fraction)", range=[-0.02, 1.02], col=1)
    figure.update_yaxes(range=[-0.02, 1.02], col=2)
    return figure.update_layout(title=title, height=500, margin={"t": 90})


def kept_histogram(weight: Tensor, masks: dict[str, Tensor], *, bins: int = 81, title: str = "") -> go.Figure:
    """Histogram of the weights of a layer, and of those that each mask keeps; counts are on a logarithmic axis.

    ``masks`` maps a method's name to its mask, bool, of a shape that broadcasts against the weight.
    """
    reach = weight.abs().max().item() or 1.0
    centers = torch.linspace(-reach, reach, 2 * bins + 1)[1::2].tolist()

    def counted(values: Tensor, name: str) -> dict:
        counts = torch.histc(values.float().cpu(), bins, -reach, reach).tolist()
        label = METHODS.get(name, name)
        hover = f"{label} %{{x:.4g}}<br>%{{customdata:,}} weights<extra></extra>"
        shown = [max(count, 0.1) for count in counts]  # a count of 0 lies below the logarithmic axis
        title = f"{label} ({values.numel():,})"
        return {"x": centers, "y": shown, "customdata": counts, "name": title, "hovertemplate": hover}

    figure = go.Figure(go.Bar(**counted(weight, "dense"), width=2 * reach / bins, marker_color="#D0D0D0"))
    for name, mask in masks.items():
        shade = plots.PALETTE[list(METHODS).index(name)]
        line = {"color": shade, "shape": "hvh", "width": 1.5}
        figure.add_scatter(**counted(weight[mask.expand_as(weight)], name), mode="lines", line=line)
    figure.update_xaxes(title="weight before pruning")
    most = max(figure.data[0].customdata)
    figure.update_yaxes(title="weights", type="log", dtick=1, range=[math.log10(0.5), math.log10(max(most, 1)) + 0.1])
    return figure.update_layout(title=title, height=440, bargap=0)


def hidden_networks(rows: DataFrame, *, title: str = "Networks hidden in networks") -> go.Figure:
    """The rows of `experiments.hidden`: accuracies by the objectives of pretraining (down) and pruning (across)."""
    shown = {"robust": "robust_accuracy", "clean": "clean_accuracy", "by noise": "smoothed_accuracy"}
    tables = {
        word: rows.pivot_table(score, "pretrained_for", "pruned_for", sort=False)
        for word, score in shown.items()
        if score in rows
    }
    clean, robust = tables["clean"], tables["robust"]
    written = [table.map("{:.2f}".format) for table in tables.values()]
    text = functools.reduce(lambda above, below: above + "<br>" + below, written)
    heatmap = go.Heatmap(
        z=robust.to_numpy(),
        x=list(robust.columns),
        y=list(robust.index),
        customdata=clean.to_numpy(),
        text=text.to_numpy(),
        texttemplate="%{text}",
        hovertemplate="pretrained for %{y}, pruned for %{x}<br>robust %{z:.4f}, clean %{customdata:.4f}<extra></extra>",
        zmin=0,
        zmax=1,
        colorscale=plots.SCALE,
        colorbar={"title": "robust<br>accuracy"},
    )
    figure = go.Figure(heatmap)
    figure.update_xaxes(title=f"pruned for (in each field: {', '.join(tables)})", type="category")
    figure.update_yaxes(title={"text": "pretrained for", "standoff": 12}, type="category", autorange="reversed")
    return figure.update_layout(title=title, width=760, height=440)


def ablation(rows: DataFrame, *, title: str = "How much data and how many epochs choosing takes") -> go.Figure:
    """The rows of `experiments.ablate`: accuracies against the number of images, and of epochs."""
    names = [name for name in ("images", "epochs") if (rows.varied == name).any()]
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True)
    for column, name in enumerate(names, start=1):
        part = rows[rows.varied == name].sort_values("amount")
        for shade, (score, label) in zip(plots.PALETTE, SCORES.items(), strict=False):
            line = go.Scatter(x=part.amount, y=part[score], name=label, showlegend=column == 1, line={"color": shade})
            figure.add_trace(line.update(mode="lines+markers"), row=1, col=column)
        figure.update_xaxes(title=f"training {name}", type="log", row=1, col=column)
        figure.update_xaxes(tickvals=part.amount, ticktext=[f"{n:,}" for n in part.amount], row=1, col=column)
    figure.update_yaxes(title="accuracy (fraction)", range=[0, 1.02], col=1)
    return figure.update_layout(title=title, height=430)
