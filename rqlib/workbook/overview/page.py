"""The page: contents, and for each network what its figures say, their chart, their table; links to all reports."""

from collections.abc import Iterable
from importlib import resources
from itertools import groupby
from math import ceil, isnan, nan
from pathlib import Path

import jinja2
import plotly.offline
from pandas import DataFrame

from rqlib.core import files
from rqlib.workbook.overview import chart, sentences
from rqlib.workbook.overview.kinds import FLOAT
from rqlib.workbook.overview.networks import Source
from rqlib.workbook.overview.treatments import Section

SHOWN = 12
"""So many rows of a table stand on the page; the others are behind a click."""
USUAL = ("INT_8", "INT_4")
"""Formats that many processors have: they stand among the rows that are shown."""

_OPEN = """
const chart = document.getElementById('{plot_id}');
chart.on('plotly_click', event => {
    const report = event.points[0].customdata;
    if (report) window.location.href = report;
});
"""  # what plotly runs after it has drawn a chart


def write(path: Path, sections: list[Section], sources: list[Source], *, unfinished: int = 0) -> None:
    """Write the page, atomically.

    Args:
        sources: all finished runs; the page names each with its report.
        unfinished: the number of runs that are left out.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    text = template.render(
        title=_title(sections),
        shown=SHOWN,
        sections=[_shown(number, section) for number, section in enumerate(sections, 1)],
        reports={name: [_run(one) for one in runs] for name, runs in groupby(sources, _notebook)},
        unfinished=unfinished,
        machines=list(dict.fromkeys(_machine(source.record) for source in sources)),
        plotly=plotly.offline.get_plotlyjs(),
    )
    files.save_text(path, text)


def columns(section: Section) -> list[tuple[str, str, str]]:
    """(metric, heading, kind of number) of each column that holds something, in order."""
    others = [(f"robust {ball}", f"under attack, {ball}", "share") for ball in section.balls[1:]]
    possible = [
        ("clean", "accuracy", "share"),
        ("predicted", "predicted", "share"),
        ("robust", f"under attack, {section.balls[0]}" if section.balls else "", "share"),
        *others,
        ("certified", f"proved, {section.proved}", "share"),
        ("bits", "size on disk", "bits"),
        ("macs", "operations (MACs)", "count"),
        ("milliseconds", "time for 64 images", "time"),
    ]
    return [column for column in possible if column[0] in section.rows and section.rows[column[0]].notna().any()]


def ordered(section: Section) -> tuple[DataFrame, DataFrame]:
    """The rows to show, and the rest. Shown are the most telling ones: of each kind the best, the most robust, ..."""
    rows = section.rows
    if len(rows) <= SHOWN:
        return rows, rows[:0]
    whole = rows.index[rows.kind == FLOAT]
    robust = rows.robust.sort_values(ascending=False, kind="stable").index[:4] if "robust" in rows else []
    best = chart.undominated(chart.drawn(section)).index[::-1]
    usual = rows.index[rows.treatment.isin(USUAL)]
    spaced = rows.index[:: ceil(len(rows) / SHOWN)]
    wanted = dict.fromkeys([*whole, *usual, *_one_of_each_kind(rows), *robust, *best, *spaced, *rows.index])
    chosen = sorted([*wanted][:SHOWN])
    return rows.loc[chosen], rows.drop(index=chosen)


def _one_of_each_kind(rows: DataFrame) -> Iterable[int]:
    """The index of the most accurate row of each kind, so that no kind is hidden."""
    accuracy = rows.clean if "clean" in rows else rows.index.to_series()
    return accuracy.fillna(-1).groupby(rows.kind, sort=False).idxmax()


def _shown(number: int, section: Section) -> dict:
    """What the template needs to know of one network."""
    shape, whole = columns(section), section.float_row
    rows, rest = ([_cells(row, shape) for row in part.to_dict("records")] for part in ordered(section))
    return {
        "id": f"network-{number}",
        "title": section.title,
        "said": sentences.say(section),
        "figure": _figure(number, section),
        "columns": shape,
        "rows": rows,
        "rest": rest,
        "accuracy": _cell(whole, "clean", "share")[0],
        "attacked": f"{_cell(whole, 'robust', 'share')[0]} within {section.balls[0]}" if "robust" in whole else "",
        "ball": next(iter(section.balls), ""),
        "count": len(section.rows),
    }


def _figure(number: int, section: Section) -> str:
    """The chart as HTML without plotly's script; empty if nothing has both an accuracy and a size."""
    if chart.drawn(section).empty:
        return ""
    settings = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
    parts = {"full_html": False, "include_plotlyjs": False, "div_id": f"chart-{number}", "post_script": _OPEN}
    return chart.figure(section).to_html(config=settings, default_height="520px", **parts)


def _cells(row: dict, shape: list) -> dict:
    """What stands in a row of the table: for each column (text, its interval)."""
    cells = [_cell(row, metric, kind) for metric, _, kind in shape]
    return {"kind": row["kind"], "treatment": row["treatment"], "report": row["report"], "cells": cells}


def _cell(row: dict, metric: str, kind: str) -> tuple[str, str]:
    value, low, high = (row.get(name, nan) for name in (metric, f"{metric}_low", f"{metric}_high"))
    if isnan(value):
        return "", ""
    write = {
        "share": lambda number: f"{100 * number:.1f}%",
        "bits": lambda number: chart.in_bytes(number / 8),
        "count": lambda number: f"{number:,.0f}",
        "time": lambda number: f"{number:.2g} ms",
    }[kind]
    interval = "" if isnan(low) else f"{write(low)} to {write(high)}".replace("% to", " to").replace(" ms to", " to")
    return write(value), interval.removesuffix("%").removesuffix(" ms")


def _title(sections: list[Section]) -> str:
    """``SmallCNN, ResNet_18 on digits``: the networks and the data; of many networks the number."""
    models = list(dict.fromkeys(section.network.model for section in sections))
    images = list(dict.fromkeys(section.network.images for section in sections))
    what = ", ".join(models) if len(models) <= 4 else f"{len(sections)} networks"
    return f"{what or 'No network'} on {', '.join(images) or 'no images'}"


def _notebook(source: Source) -> str:
    return source.record["notebook"]


def _run(source: Source) -> dict:
    """What the list of reports says of a run."""
    about = [source.network.title if source.network else "", f"{source.record['seconds']:,.0f} s"]
    name = source.record["folder"].name
    return {"name": name, "report": source.report, "about": ", ".join(filter(None, about))}


def _machine(record: dict) -> str:
    machine = record["machine"]
    return machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
