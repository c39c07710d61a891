"""The figure of one network: accuracy of every treatment against its size, colored by accuracy under attack."""

import math
from html import escape

import plotly.graph_objects as go
from pandas import DataFrame, Series

from rqlib.core import plots  # noqa: F401 - the template of all figures
from rqlib.quantization import choosing
from rqlib.workbook.overview.kinds import CHANNELS, DEFENDED, FLOAT, FORMAT, JOINT, KINDS, MIX, PRUNED, UNSEEN
from rqlib.workbook.overview.treatments import Section

SYMBOLS = {
    FLOAT: "star",
    FORMAT: "circle",
    MIX: "diamond",
    UNSEEN: "circle-dot",
    PRUNED: "square",
    CHANNELS: "triangle-up",
    JOINT: "cross",
    DEFENDED: "hexagon2",
}
SIZES = {FLOAT: 17, UNSEEN: 8, MIX: 13}
GRAY = "#C4C4C4"
MOST_LABELS = 7
"""So many labels stand beside each other at most."""
_BAR = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "len": 0.8, "thickness": 10,
        "tickformat": ".0%", "dtick": 0.2, "tickfont": {"size": 11}, "outlinewidth": 0}  # fmt: skip
_COLORS = {"colorscale": "RdYlBu", "cmin": 0, "cmax": 1, "colorbar": _BAR}
BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))


def in_bytes(size: float) -> str:
    """A number of bytes with three digits: ``332 kB``."""
    factor, unit = next((pair for pair in BYTES if size >= pair[0]), BYTES[-1])
    return f"{size / factor:.3g} {unit}" if size / factor < 100 else f"{size / factor:.0f} {unit}"


def drawn(section: Section) -> DataFrame:
    """The rows that the figure shows: those with an accuracy and a size; none if there is only one."""
    rows = section.rows
    rows = rows.dropna(subset=["clean", "bits"]) if {"clean", "bits"} <= set(rows) else rows[:0]
    return rows if len(rows) > 1 else rows[:0]


def undominated(rows: DataFrame) -> DataFrame:
    """The rows that no row of the same or a smaller size beats in accuracy, in order of size."""
    return choosing.undominated(rows.assign(coded_bits=rows.bits, accuracy=rows.clean))


def figure(section: Section) -> go.Figure:
    """Clean accuracy against bytes on a logarithmic axis; a click on a point leads to its report (``customdata``)."""
    rows = drawn(section)
    best = undominated(rows)
    path = go.Scatter(x=best.bits / 8, y=best.clean, mode="lines", line={"shape": "hv", "color": "#888888", "width": 1})
    chart = go.Figure(path.update(name="no smaller one is better", hoverinfo="skip"))
    for kind in reversed(KINDS):  # the float network on top
        if len(some := rows[rows.kind == kind]):
            chart.add_trace(_dots(some, kind, section.balls))
    attacked = "robust" in rows and rows.robust.notna().any()
    if attacked:
        chart.update_layout(coloraxis=_COLORS)
    ticks, span = _ticks(rows.bits / 8), _span(rows.bits / 8)
    named = {"tickvals": ticks, "ticktext": [in_bytes(tick) for tick in ticks]}
    chart.update_xaxes(title={"text": "size on disk", "standoff": 8}, type="log", range=span, **named)
    chart.update_yaxes(title={"text": "accuracy", "standoff": 8}, range=[0, 1], tickformat=".0%", dtick=0.2)
    chart.update_layout(annotations=[_label(row, span) for row in _labeled(best).to_dict("records")])
    legend = {"orientation": "h", "traceorder": "reversed", "x": 0, "y": 1.02, "yanchor": "bottom", "font_size": 12}
    margin = {"l": 10, "r": 20, "t": 30, "b": 95 if attacked else 10}
    return chart.update_layout(legend=legend, margin=margin, height=520, dragmode=False, hovermode="closest")


def _dots(rows: DataFrame, kind: str, balls: list[str]) -> go.Scatter:
    robust = rows.robust if "robust" in rows else rows.clean * float("nan")
    marker = {
        "symbol": SYMBOLS[kind],
        "size": SIZES.get(kind, 10),
        "color": [GRAY if math.isnan(share) else share for share in robust],
        "coloraxis": "coloraxis",
        "line": {"width": 1, "color": "#444444"},
    }
    return go.Scatter(
        x=rows.bits / 8,
        y=rows.clean,
        name=kind,
        mode="markers",
        marker=marker,
        error_y=_bars(rows),
        cliponaxis=False,
        customdata=rows.report,
        text=[_hover(row, balls) for row in rows.to_dict("records")],
        hovertemplate="%{text}<extra></extra>",
    )


def _labeled(best: DataFrame) -> DataFrame:
    """Of the undominated rows, from the largest, those that are far enough apart for a label."""
    chosen, last = [], math.inf
    low, high = _span(best.bits)
    apart = (high - low) / MOST_LABELS
    for row in best[(best.kind != FLOAT) & (best.clean > 0.5 * best.clean.max())][::-1].itertuples():
        if math.log10(row.bits) <= last - apart:
            chosen.append(row.Index)
            last = math.log10(row.bits)
    return best.loc[chosen]


def _label(row: dict, span: tuple[float, float]) -> dict:
    """The name of a treatment below its point; to the left where there is no room on the right."""
    x, side = math.log10(row["bits"] / 8), 1
    if x > span[0] + 0.75 * (span[1] - span[0]):
        side = -1
    place = {"ax": 18 * side, "ay": 42, "xanchor": "left" if side > 0 else "right", "textangle": 20 * side}
    look = {"arrowhead": 0, "arrowwidth": 1, "arrowcolor": "#888888", "font": {"size": 11}}
    return {"x": x, "y": row["clean"], "text": escape(row["treatment"]), **place, **look}


def _bars(rows: DataFrame) -> dict:
    """The intervals of the accuracies, as thin lines."""
    ends = rows.reindex(columns=["clean_low", "clean_high"])
    above, below = ends.clean_high - rows.clean, rows.clean - ends.clean_low
    look = {"thickness": 1, "width": 0, "color": "rgba(0, 0, 0, 0.25)"}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def _hover(row: dict, balls: list[str]) -> str:
    """What a treatment is and what was measured, one line each."""
    lines = [f"<b>{escape(row['treatment'])}</b>", f"accuracy {_share(row, 'clean')}"]
    columns = {"robust": balls[0]} | {f"robust {ball}": ball for ball in balls[1:]} if balls else {}
    titles = {name: f"under attack within {ball}" for name, ball in columns.items()} | {"certified": "proved"}
    for name, title in titles.items():
        if not math.isnan(row.get(name, math.nan)):
            lines.append(f"{title} ({escape(row[f'{name}_how'])}): {_share(row, name)}")
    return "<br>".join([*lines, in_bytes(row["bits"] / 8), "click: its report" if row["report"] else ""])


def _share(row: dict, metric: str) -> str:
    """``98.9% (97.2 to 99.6)``."""
    low, high = (row.get(f"{metric}_{end}", math.nan) for end in ("low", "high"))
    return f"{100 * row[metric]:.1f}%" + ("" if math.isnan(low) else f" ({100 * low:.1f} to {100 * high:.1f})")


def _span(sizes: Series) -> tuple[float, float]:
    """Ends of the axis as decimal logarithms, at least one decade apart."""
    low, high = math.log10(sizes.min()), math.log10(sizes.max())
    room = max(0.06 * (high - low), (1 - high + low) / 2)
    return low - room, high + room


def _ticks(sizes: Series) -> list[float]:
    """Whole decades; within less than two of them also 2 and 5 times each."""
    low, high = _span(sizes)
    steps = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [step * 10**power for power in range(math.floor(low), math.ceil(high)) for step in steps]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]
