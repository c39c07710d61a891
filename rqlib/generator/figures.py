"""Figures of generated images: how they were learned, where they lie, what they tell of quantized networks."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from pandas import DataFrame
from plotly.subplots import make_subplots

from rqlib.core import plots
from rqlib.models import MODELS
from rqlib.robustness import quantized_networks

ACTIONS = {
    "superposed": plots.PALETTE[0],
    "adversarial": plots.PALETTE[1],
    "single": plots.PALETTE[2],
    "stop": "#222222",
}
_LINE = {"color": "#222222", "dash": "dot", "width": 1.5}


def training(history: DataFrame, *, title: str = "The generator learns from the network alone") -> go.Figure:
    """Parts of the loss, and the share of images classified as asked, against the epoch.

    Args:
        history: from `generator.fit`.
    """
    prior = next(name for name in ("batchnorm_distance", "total_variation") if name in history)
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    lines = [("cross_entropy", "cross-entropy", 1), (prior, prior.replace("_", " "), 1)]
    for index, (column, name, axis) in enumerate([*lines, ("class_accuracy", "classified as asked", 2)]):
        line = go.Scatter(
            x=history.epoch, y=history[column], name=name, mode="lines+markers", line_color=plots.PALETTE[index],
            hovertemplate="epoch %{x}<br>" + name + " %{y:.4f}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(line, row=1, col=axis)
    figure.update_xaxes(title="epoch", range=[0.5, len(history) + 0.5])
    figure.update_yaxes(title="part of the loss, before its weight", type="log", exponentformat="power", row=1, col=1)
    figure.update_yaxes(title="share of images", range=[0, 1.03], row=1, col=2)
    return figure.update_layout(title=title, height=430, legend={"orientation": "h", "y": -0.28})


def adjustment(runs: Mapping[str, DataFrame], *, title: str = "Adjustment, round by round") -> go.Figure:
    """Accuracy of the teacher on the images minus its target, clean and attacked; a row a run, marks tell the step.

    Args:
        runs: name -> rows from `generator.adjust`.
    """
    sides = {"clean_difference": "clean", "robust_difference": "under attack"}
    titles = [f"{name}: {side}" for name in runs for side in sides.values()]
    figure = make_subplots(len(runs), 2, subplot_titles=titles, horizontal_spacing=0.1, vertical_spacing=0.14)
    shown = set()
    for row, rows in enumerate(runs.values(), start=1):
        for column, side in enumerate(sides, start=1):
            path = {"mode": "lines", "line": {"color": "#BBBBBB", "width": 1.5}, "hoverinfo": "skip"}
            figure.add_trace(go.Scatter(x=rows["round"], y=rows[side], showlegend=False, **path), row=row, col=column)
            for action, some in rows.groupby("action", sort=False):
                dots = _marks(some, side, action).update(showlegend=action not in shown)
                figure.add_trace(dots, row=row, col=column)
                shown.add(action)
    figure.add_hline(0, line=_LINE)
    figure.update_xaxes(title="round", row=len(runs))
    figure.update_yaxes(title="pseudo - target (points)", col=1)
    figure.update_annotations(font_size=13)
    legend = {"orientation": "h", "y": -0.12, "title": "next step: "}
    return figure.update_layout(title=title, height=160 + 260 * len(runs), margin_t=90, legend=legend)


def _marks(some: DataFrame, side: str, action: str) -> go.Scatter:
    return go.Scatter(
        x=some["round"], y=some[side], mode="markers", name=action, legendgroup=action,
        marker={"color": ACTIONS[action], "size": 7}, hovertemplate="round %{x}<br>%{y:.1f} points<extra></extra>",
    )  # fmt: skip


def maps(points: DataFrame, classes: Sequence[str], *, title: str = "Features of the last layer but one") -> go.Figure:
    """The map of each set, side by side on the same axes, colored by class.

    Args:
        points: from `feature_map.project`.
    """
    sets = list(dict.fromkeys(points.set))
    figure = make_subplots(
        1, len(sets), subplot_titles=sets, shared_yaxes="all", shared_xaxes="all", horizontal_spacing=0.02
    )
    for column, name in enumerate(sets, start=1):
        for label, some in points[points.set == name].groupby("label"):
            figure.add_trace(_dots(some, name, label, classes).update(showlegend=column == 1), row=1, col=column)
    figure.update_xaxes(title="first principal axis")
    figure.update_yaxes(title="second principal axis", row=1, col=1)
    legend = {"itemsizing": "constant", "font_size": 12}
    return figure.update_layout(title=title, width=340 * len(sets) + 120, height=460, margin_t=90, legend=legend)


def _dots(some: DataFrame, name: str, label: int, classes: Sequence[str]) -> go.Scatter:
    marker = {"size": 4, "opacity": 0.6, "color": _shade(label, len(classes))}
    return go.Scatter(
        x=some.x, y=some.y, mode="markers", name=classes[label], legendgroup=str(label), marker=marker,
        customdata=[[name, index] for index in some["index"]],
        hovertemplate="%{customdata[0]} %{customdata[1]}: " + classes[label] + "<extra></extra>",
    )  # fmt: skip


def _shade(label: int, classes: int) -> str:
    """Ten classes have ten colors; more share the circle of hues."""
    shades = (*plots.PALETTE, "#999933")
    return shades[label] if classes <= len(shades) else f"hsl({360 * label / classes:.0f},65%,45%)"


def relative(frame: DataFrame, *, title: str = "What a quantized network keeps: real against generated") -> go.Figure:
    """Relative accuracy on real (y) against generated images (x), a row a generator, a column an attack; line: y = x.

    Args:
        frame: from `quantized_networks.relative`.
    """
    scores = quantized_networks.agreement(frame).set_index(["generator", "attack"])
    generators, attacks = (list(dict.fromkeys(frame[name])) for name in ("generator", "attack"))
    names = [
        f"{one}, {attack}: R<sup>2</sup> of y = x {scores.identity_r2.get((one, attack), float('nan')):.2f}"
        for one in generators for attack in attacks
    ]  # fmt: skip
    figure = make_subplots(
        len(generators), len(attacks), subplot_titles=names, shared_xaxes="all", shared_yaxes="all",
        horizontal_spacing=0.03, vertical_spacing=0.2 / len(generators),
    )  # fmt: skip
    for (one, attack), some in frame.groupby(["generator", "attack"], sort=False):
        place = {"row": generators.index(one) + 1, "col": attacks.index(attack) + 1}
        first = place == {"row": 1, "col": 1}
        figure.add_trace(
            go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=_LINE, hoverinfo="skip", showlegend=False), **place
        )
        for model, own in some.groupby("model", sort=False):
            dots = go.Scatter(
                x=own.pseudo, y=own.test, mode="markers", name=str(model), text=own.format, legendgroup=str(model),
                showlegend=first, marker={"color": plots.color(str(model), MODELS), "size": 6, "opacity": 0.75},
                hovertemplate="%{text}<br>generated %{x:.2f}, real %{y:.2f}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(dots, **place)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title="on generated images", row=len(generators))
    figure.update_yaxes(title="on test images", col=1)
    legend = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"}
    size = {"width": 130 + 300 * len(attacks), "height": 170 + 270 * len(generators)}
    return figure.update_layout(title=title, margin={"t": 100, "b": 110}, legend=legend, **size)
