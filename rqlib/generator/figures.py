"""Figures of generated images: how they are learned, how they look, where they lie, and what they foretell."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from pandas import DataFrame
from plotly.subplots import make_subplots

from rqlib import data, prediction
from rqlib.core import plots
from rqlib.generator import migration
from rqlib.generator.adjustment import Target
from rqlib.models import MODELS
from rqlib.prediction import figures as prediction_figures
from rqlib.training.figures import sample_grid

ACTIONS = {
    "superposed": plots.PALETTE[0],
    "adversarial": plots.PALETTE[1],
    "single": plots.PALETTE[2],
    "stop": "#222222",
}
_LINE = {"color": "#222222", "dash": "dot", "width": 1.5}


def training(history: DataFrame, *, title: str = "The generator learns from the network alone") -> go.Figure:
    """Of the rows of `generator.fit`, epoch by epoch: the parts of the loss, and the share classified as asked."""
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
    figure.update_yaxes(title="part of the loss (unweighted)", **plots.DECADES, row=1, col=1)
    figure.update_yaxes(title="share of images", range=[0, 1.03], row=1, col=2)
    return figure.update_layout(title=title, height=430, legend={"orientation": "h", "y": -0.28})


def adjustment(
    rounds: DataFrame, targets: Mapping[str, Target | None], *, title: str = "Adjustment, round by round"
) -> go.Figure:
    """Accuracy of the teacher on generated images minus that of the target, clean and attacked, against the round.

    Each generator has a row of panels. The color of a mark says which step was taken next. The rounds and targets are
    those of `generator.adjust_all`.
    """
    sides = {"clean_difference": "clean", "robust_difference": "under attack"}
    runs = dict([*rounds.groupby("generator", sort=False)])
    titles = [f"{_in_words(targets[name])}: {side}" for name in runs for side in sides.values()]
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
    figure.update_yaxes(title="generated - target (points)", col=1)
    figure.update_annotations(font_size=13)
    legend = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "title": "next step: "}
    size = {"height": 190 + 260 * len(runs), "margin": {"t": 90, "b": 110}}
    return figure.update_layout(title=title, legend=legend, **size)


def _in_words(target: Target | None) -> str:
    return "no target" if target is None else f"target {target.clean:.0%} clean, {target.robust:.0%} attacked"


def _marks(some: DataFrame, side: str, action: str) -> go.Scatter:
    return go.Scatter(
        x=some["round"], y=some[side], mode="markers", name=action, legendgroup=action,
        marker={"color": ACTIONS[action], "size": 7}, hovertemplate="round %{x}<br>%{y:.1f} points<extra></extra>",
    )  # fmt: skip


def samples(made: data.Split, classes: Sequence[str], *, name: str) -> go.Figure:
    """The first images of every class of a `generator.sample`, one row per class; the title calls them ``name``."""
    return sample_grid(*made, tuple(classes), title=f"Generated images by class: {name}")


def maps(points: DataFrame, classes: Sequence[str], *, title: str = "Features of the last layer but one") -> go.Figure:
    """The maps of all sets (points of `map_features`) on the same axes, up to three in a row, colored by class."""
    sets = list(dict.fromkeys(points.set))
    columns = min(3, len(sets))
    rows = math.ceil(len(sets) / columns)
    shared = {"shared_xaxes": "all", "shared_yaxes": "all"}
    spacing = {"horizontal_spacing": 0.02, "vertical_spacing": 0.16 / rows}
    figure = make_subplots(rows, columns, subplot_titles=sets, **spacing, **shared)
    for index, name in enumerate(sets):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        for label, some in points[points.set == name].groupby("label"):
            figure.add_trace(_dots(some, name, label, classes).update(showlegend=index == 0), **place)
        if index + columns >= len(sets):  # nothing lies below
            figure.update_xaxes(title="first principal axis", showticklabels=True, **place)
    figure.update_yaxes(title="second principal axis", col=1)
    legend = {"itemsizing": "constant", "font_size": 12}
    return figure.update_layout(title=title, height=130 + 330 * rows, margin_t=90, legend=legend)


def _dots(some: DataFrame, name: str, label: int, classes: Sequence[str]) -> go.Scatter:
    marker = {"size": 4, "opacity": 0.6, "color": _shade(label, len(classes))}
    return go.Scatter(
        x=some.x, y=some.y, mode="markers", name=classes[label], legendgroup=str(label), marker=marker,
        customdata=[[name, index] for index in some["index"]],
        hovertemplate="%{customdata[0]} %{customdata[1]}: " + classes[label] + "<extra></extra>",
    )  # fmt: skip


def _shade(label: int, classes: int) -> str:
    """The color of a class: one of ten for up to ten classes, otherwise a hue of the color circle."""
    shades = (*plots.PALETTE, "#999933")
    return shades[label] if classes <= len(shades) else f"hsl({360 * label / classes:.0f},65%,45%)"


def forecast(frame: DataFrame, *, title: str, tolerated_loss: float = 0.02) -> go.Figure:
    """`prediction.figures.forecast` of a table of `migrate`; the title says how far it is from the measured loss."""
    found = migration.score(frame)
    title = f"{title}: R<sup>2</sup> {found['r2']:.3f}, mean absolute error {found['mae']:.3f}"
    return prediction_figures.forecast(frame, tolerated_loss, level=frame.level.iloc[0], title=title)


def relative(frame: DataFrame, *, title: str = "What a quantized network keeps: real against generated") -> go.Figure:
    """Relative accuracy on real images (y) against that on generated images (x), beside the line y = x.

    Each generator has a row of panels and each attack a column; a dot is a format, and bars are one standard error of
    each side, if the frame of `generator.relative` has them. A frame without rows, for example of a network that is
    never right on generated images, gives a figure that says so.
    """
    if frame.empty:
        nothing = f"{title}: nothing to compare (no format attacked, or the float network never right)"
        return go.Figure(layout={"title": nothing, "height": 170})
    scores = prediction.agreement(frame).set_index(["generator", "attack"])
    generators, attacks = (list(dict.fromkeys(frame[name])) for name in ("generator", "attack"))
    names = [f"{one}, {attack}:<br>{_claim(scores, one, attack)}" for one in generators for attack in attacks]
    figure = make_subplots(
        len(generators), len(attacks), subplot_titles=names, shared_xaxes="all", shared_yaxes="all",
        horizontal_spacing=0.03, vertical_spacing=0.2 / len(generators),
    )  # fmt: skip
    for (one, attack), some in frame.groupby(["generator", "attack"], sort=False):
        place = {"row": generators.index(one) + 1, "col": attacks.index(attack) + 1}
        figure.add_traces(_against(some, showlegend=place == {"row": 1, "col": 1}), place["row"], place["col"])
    figure.update_annotations(font_size=11)
    figure.update_xaxes(title="on generated images", row=len(generators))
    figure.update_yaxes(title="on test images", col=1)
    legend = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"}
    size = {"height": 185 + 270 * len(generators), "margin": {"t": 115, "b": 110}}
    return figure.update_layout(title=title, legend=legend, **size)


def _claim(scores: DataFrame, generator: str, attack: str) -> str:
    """How well y = x holds, for the title of a panel."""
    if (generator, attack) not in scores.index:
        return "not measured"
    found = scores.loc[generator, attack]
    error = f"mean error {found.mae:.2f}"
    return error if math.isnan(found.identity_r2) else f"{error},<br>R<sup>2</sup> of y = x {found.identity_r2:.2f}"


def _against(some: DataFrame, *, showlegend: bool) -> list[go.Scatter]:
    """The line y = x and the dots of every network; only one panel names them in the legend."""
    line = go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=_LINE, hoverinfo="skip", showlegend=False)
    dots = [
        go.Scatter(
            x=own.pseudo, y=own.test, mode="markers", name=str(model), text=own.format, legendgroup=str(model),
            showlegend=showlegend, marker={"color": plots.color(str(model), MODELS), "size": 6, "opacity": 0.75},
            **_bars(own),
            hovertemplate="%{text}<br>generated %{x:.2f}, real %{y:.2f}<extra></extra>",
        )
        for model, own in some.groupby("model", sort=False)
    ]  # fmt: skip
    return [line, *dots]


def _bars(own: DataFrame) -> dict:
    """Error bars of dots, if their errors are known."""
    bar = {"color": "#BBBBBB", "thickness": 1, "width": 0}
    sides = {"error_x": "pseudo_error", "error_y": "test_error"}
    return {axis: bar | {"array": own[name]} for axis, name in sides.items() if name in own}
