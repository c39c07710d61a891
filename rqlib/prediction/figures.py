"""Figures of prediction: curves through losses, predictors judged on networks left out, a network's forecast."""

import math
from collections.abc import Mapping, Sequence

import numpy
import plotly.graph_objects as go
from pandas import DataFrame, Series
from plotly.subplots import make_subplots

from rqlib.core import plots
from rqlib.prediction import conformal, features, fits
from rqlib.prediction.features import TARGET
from rqlib.prediction.fits import Fit, HeldOut

BASELINES = ("mean loss", "format name only")
GREY, DARK = "#999999", "#222222"
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ABOVE = {"orientation": "h", "y": 1.0, "yanchor": "bottom"}
"""The place of a legend: above the figure."""
NO_INTERVAL = "no interval: too few networks"
POINTS = 300
"""Number of points of a drawn curve."""


def model_curves(
    frame: DataFrame, feature: str, models: Mapping[str, Fit], *, group: str = "title", title: str = ""
) -> go.Figure:
    """Loss against one feature, one panel per network: its rows by kind of format, its own curve and R2.

    ``frame`` is a table from `prediction.table`, ``models`` a column of `fits.fit_each`: network -> its fit.
    """
    rows = math.ceil(len(models) / 3)
    titles = [f"{model}: R<sup>2</sup> = {fit.r2:.3f}" for model, fit in models.items()]
    shared = {"shared_xaxes": "all", "shared_yaxes": "all"}
    figure = make_subplots(rows, min(3, len(models)), subplot_titles=titles, vertical_spacing=0.2 / rows, **shared)
    frame = frame.dropna(subset=[feature])
    for index, (model, fit) in enumerate(models.items()):
        place = {"row": index // 3 + 1, "col": index % 3 + 1}
        own = frame[frame[group].astype(str) == model]
        for kind, some in own.groupby("kind", sort=False):
            dots = _dots(some, feature, frame[feature], size=6, color=plots.KINDS.get(kind, GREY))
            figure.add_trace(dots.update(name=kind, legendgroup=kind, showlegend=index == 0), **place)
        figure.add_trace(_curve(own[feature], fit).update(showlegend=index == 0), **place)
    _feature_axis(figure, frame[feature], "", ticks=3)
    figure.update_xaxes(title=features.label(feature), title_font_size=13, row=rows)
    figure.update_yaxes(title="accuracy loss", tickformat=".1f", col=1)
    legend = {"orientation": "h", "y": 0.99, "yref": "container", "yanchor": "top", "x": 1, "xanchor": "right"}
    return figure.update_layout(title=title, height=170 + 220 * rows, margin={"t": 100, "b": 80}, legend=legend)


def pooled_curve(frame: DataFrame, fit: Fit, *, group: str = "title", level: float = 0.9, title: str = "") -> go.Figure:
    """Loss of all networks against one feature, the curve through all of them, and the interval of a new network.

    The interval is made for the level, or for less where few networks were measured (`conformal.promised`).
    """
    (feature,) = fit.features
    frame = frame.dropna(subset=[feature])
    band = _band(frame[feature], fit, conformal.promised(level, frame[group].nunique()))
    figure = go.Figure(band)
    for name, some in frame.groupby(group, sort=False):
        figure.add_trace(_dots(some, feature, frame[feature], **_mark(name, frame[group])).update(name=str(name)))
    figure.add_trace(_curve(frame[feature], fit))
    _feature_axis(figure, frame[feature], features.label(feature))
    figure.update_yaxes(title=features.label(TARGET), range=[min(-0.12, frame[TARGET].min() - 0.05), 1.12])
    return figure.update_layout(title=title, height=520)


def message(text: str) -> go.Figure:
    """An empty figure that says why it is empty."""
    figure = go.Figure().update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")


def board_bars(board: DataFrame, *, title: str = "Predictors, judged on networks left out") -> go.Figure:
    """R2 of every predictor of a `leaderboard`, in sample and on networks left out, there with its 95% interval.

    A line shows that of the format's name on the same rows, which are not the same for all predictors.
    """
    knows_nothing = board.predictor.isin(BASELINES)
    in_sample = go.Scatter(
        x=board.in_sample_r2, y=board.predictor, mode="markers", name="in sample",
        marker={"symbol": "diamond-open", "size": 9, "color": plots.PALETTE[1], "line_width": 2},
        hovertemplate="%{y}<br>R<sup>2</sup> %{x:.3f}<extra></extra>",
    )  # fmt: skip
    by_name = go.Scatter(
        x=board.held_out_r2 - board.above_name, y=board.predictor, mode="markers", name="format name, same rows",
        marker={"symbol": "line-ns-open", "size": 16, "color": DARK, "line_width": 2},
        hovertemplate="%{y}<br>format name only, on the same rows: %{x:.3f}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure([
        _bars(board[~knows_nothing], "left out, 95% interval", plots.PALETTE[0]),
        _bars(board[knows_nothing], "the same, baselines", GREY),
        in_sample,
        by_name,
    ])  # fmt: skip
    figure.update_yaxes(categoryorder="array", categoryarray=list(board.predictor[::-1]))
    figure.update_xaxes(title="R<sup>2</sup> (share of the variance of the loss explained)", range=[-0.3, 1.02])
    figure.update_yaxes(tickfont_size=12)
    return figure.update_layout(title=title, height=150 + 24 * len(board), legend=ABOVE)


def _bars(board: DataFrame, name: str, color: str) -> go.Bar:
    reach = {"array": board.r2_upper - board.held_out_r2, "arrayminus": board.held_out_r2 - board.r2_lower}
    return go.Bar(
        x=board.held_out_r2, y=board.predictor, orientation="h", name=name, marker_color=color, offset=-0.4, width=0.8,
        error_x=reach | {"symmetric": False, "color": DARK, "thickness": 1.2}, customdata=board[["rows", "groups"]],
        hovertemplate="%{y}<br>%{x:.3f}, %{customdata[0]} rows of %{customdata[1]} networks<extra></extra>",
    )  # fmt: skip


def measured_against_predicted(table: DataFrame, *, group: str = "title", title: str = "") -> go.Figure:
    """Measured loss against the loss predicted without the network (`HeldOut.table`); bars are the intervals."""
    figure = go.Figure(_line([0, 1], [0, 1], "exact"))
    for name, some in table.groupby(group, sort=False):
        dots = _dots(some, "predicted", None, **_mark(name, table[group])).update(name=str(name))
        reach = {"array": some.upper - some.predicted, "arrayminus": some.predicted - some.lower}
        figure.add_trace(dots.update(error_x=reach | {"symmetric": False, "thickness": 0.5, "width": 0}))
    figure.update_xaxes(title="loss predicted without the network (fraction)", range=[-0.15, 1.15])
    figure.update_yaxes(title="loss measured (fraction)", range=[-0.05, 1])
    return figure.update_layout(title=title, height=560)


def residuals(table: DataFrame, *, title: str = "What is left, by kind of format") -> go.Figure:
    """Measured minus predicted loss by kind and bits of the format; every row of a `HeldOut.table` is a dot."""
    figure = go.Figure()
    for kind, some in table.groupby("kind", sort=False):
        figure.add_trace(
            go.Box(
                x=some.bits, y=some.residual, name=str(kind), boxpoints="all", pointpos=0, jitter=0.5, marker_size=4,
                marker_color=plots.KINDS.get(kind, GREY), text=some.title + " " + some.format,
                hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
            )
        )  # fmt: skip
    figure.add_hline(0, line={"color": DARK, "width": 1})
    figure.update_xaxes(title="bits of the format", dtick=1)
    figure.update_yaxes(title="measured - predicted loss (fraction)")
    return figure.update_layout(title=title, boxmode="group")


def coverage(trial: HeldOut, *, level: float = 0.9, title: str = "Are the intervals honest?") -> go.Figure:
    """Share of rows left out whose interval holds the truth.

    Left: for all networks, against the level asked for. Right: network by network, at one level.
    """
    table = trial.table(level)
    if table.upper.isna().all():
        return message("Fewer than three networks: there are no intervals to judge.")
    each = table.groupby(trial.group, sort=False).apply(fits.coverage)
    measured = [fits.coverage(trial.table(nominal)) for nominal in LEVELS]
    names = [f"all networks, {level:.0%} intervals hold {fits.coverage(table):.1%}", "network by network"]
    figure = make_subplots(1, 2, column_widths=[0.45, 0.55], subplot_titles=names, horizontal_spacing=0.12)
    figure.add_trace(_line([0.45, 1], [0.45, 1], "exact"), row=1, col=1)
    line = go.Scatter(x=LEVELS, y=measured, mode="lines+markers", line_color=plots.PALETTE[0], name="measured")
    figure.add_trace(line, row=1, col=1)
    shades = [_mark(name, each.index)["color"] for name in each.index]
    bars = go.Bar(x=[str(name) for name in each.index], y=each.to_numpy(), marker_color=shades, name="coverage")
    figure.add_trace(bars, row=1, col=2)
    figure.add_hline(level, line={"color": DARK, "dash": "dot"}, row=1, col=2)
    figure.update_xaxes(title="level asked for", row=1, col=1)
    figure.update_yaxes(title="share of rows within", row=1, col=1)
    figure.update_yaxes(range=[0, 1.02], row=1, col=2)
    figure.update_xaxes(tickangle=-40, type="category", row=1, col=2)
    return figure.update_layout(title=title, showlegend=False, height=460, margin_t=100)


def forecast(
    frame: DataFrame, tolerated_loss: float, *, level: float = 0.9, title: str = "Predicted loss of every format"
) -> go.Figure:
    """A network's predicted loss and interval, format by format, the smallest first; also the measured loss if known.

    ``frame`` is from `forecasting.predict` with the same level; the tolerated loss, a fraction, is drawn as a line.
    """
    within, unknown = frame.upper <= tolerated_loss, frame.upper.isna()
    groups = {
        f"predicted, {level:.0%} interval": (frame[~within & ~unknown], plots.PALETTE[0]),
        "interval within the tolerated loss": (frame[within], plots.PALETTE[2]),
        NO_INTERVAL: (frame[unknown], plots.PALETTE[5]),
    }
    figure = go.Figure([_forecast(rows, name, shade) for name, (rows, shade) in groups.items() if len(rows)])
    if TARGET in frame:
        style = {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": plots.PALETTE[1]}}
        truth = {"mode": "markers", "name": "measured", "marker": style}
        figure.add_trace(go.Scatter(x=frame.format, y=frame[TARGET], **truth, hovertemplate="%{y:.3f}<extra></extra>"))
    limit = f"tolerated: {tolerated_loss:.1%}"
    figure.add_hline(tolerated_loss, line={"color": DARK, "dash": "dot"}, annotation_text=limit)
    order = {"type": "category", "categoryorder": "array", "categoryarray": list(frame.format)}
    figure.update_xaxes(title="format, smallest first", tickangle=-60, tickfont_size=11, **order)
    figure.update_yaxes(title=features.label(TARGET))
    return figure.update_layout(title=title, height=540, margin_t=90, legend=ABOVE)


def _forecast(rows: DataFrame, name: str, color: str) -> go.Scatter:
    reach = {"array": rows.upper - rows.predicted, "arrayminus": rows.predicted - rows.lower}
    unlike = rows.outside.where(rows.outside == "", "unlike in " + rows.outside)
    return go.Scatter(
        x=rows.format, y=rows.predicted, mode="markers", name=name, marker={"color": color, "size": 9},
        error_y=reach | {"symmetric": False, "color": GREY}, text=unlike,
        hovertemplate="%{x}<br>loss %{y:.3f}<br>%{text}<extra></extra>",
    )  # fmt: skip


def _mark(name: object, among: Sequence) -> dict[str, str]:
    """Color and symbol of a network among all that are drawn: networks that share a color differ in the symbol."""
    names = [str(one) for one in dict.fromkeys(among)]
    symbol = "circle" if plots.dash(str(name), names) == "solid" else "diamond-open"
    return {"color": plots.color(str(name), names), "symbol": symbol}


def _dots(rows: DataFrame, feature: str, axis: Series | None, *, size: int = 7, **marker) -> go.Scatter:
    """Rows as dots that say which row they are; ``axis`` holds all values of the axis, for `_shown`."""
    return go.Scatter(
        x=rows[feature] if axis is None else _shown(rows[feature], axis), y=rows[TARGET], mode="markers",
        marker={"size": size, "opacity": 0.75, **marker},
        text=rows.title + " " + rows.format, customdata=rows[[feature]],
        hovertemplate="%{text}<br>%{customdata[0]:.4g} -> loss %{y:.3f}<extra></extra>",
    )  # fmt: skip


def _is_log(values: Series) -> bool:
    """Whether an axis had better be logarithmic: no value is negative, and they span over three powers of ten."""
    positive = values[values > 0]
    return bool((values >= 0).all() and len(positive) and positive.max() > 1000 * positive.min())


def _shown(values: Series, axis: Series) -> Series:
    """The values; those that a logarithmic axis cannot show lie at its left end."""
    return values.clip(lower=axis[axis > 0].min()) if _is_log(axis) else values


def _grid(values: Series) -> numpy.ndarray:
    low, high = _shown(values, values).min(), values.max()
    return numpy.geomspace(low, high, POINTS) if _is_log(values) else numpy.linspace(low, high, POINTS)


def _curve(values: Series, fit: Fit) -> go.Scatter:
    x = _grid(values)
    return _line(x, fit.curve.predict(x[:, None]), fit.family, dash="solid")


def _band(values: Series, fit: Fit, level: float) -> list[go.Scatter]:
    x = _grid(values)
    ends = fit.predict(x, level=level)
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": "band"}
    upper = go.Scatter(x=x, y=ends.upper.clip(0, 1), showlegend=False, **edge)
    shade = {"fill": "tonexty", "fillcolor": "rgba(100,100,100,0.15)"}
    return [upper, go.Scatter(x=x, y=ends.lower.clip(0, 1), name=f"{level:.0%} interval", **shade, **edge)]


def _line(x: Sequence[float], y: Sequence[float], name: str, *, dash: str = "dot") -> go.Scatter:
    style = {"color": DARK, "width": 2, "dash": dash}
    return go.Scatter(x=x, y=y, mode="lines", name=name, line=style, hoverinfo="skip")


def _feature_axis(figure: go.Figure, values: Series, title: str, *, ticks: int = 8) -> None:
    """Name the x axis; a logarithmic one has at most so many ticks, every power of ten if they are enough."""
    log, positive = _is_log(values), values[values > 0]
    note = "; 0 at the left end" if log and (values == 0).any() and title else ""
    scale = {"type": "linear", "nticks": 5}
    if log:
        decades = math.log10(positive.max() / positive.min())
        scale = plots.DECADES | {"dtick": math.ceil(decades / ticks)}
    figure.update_xaxes(title=title + note, tickangle=0, **scale)
