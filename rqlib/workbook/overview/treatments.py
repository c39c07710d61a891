"""One row per treatment of a network, from the table of `measurements`."""

from dataclasses import dataclass
from math import nan

import numpy
import pandas
from pandas import DataFrame

from rqlib import measures
from rqlib.workbook.overview.kinds import DEFENDED, FLOAT, KINDS
from rqlib.workbook.overview.networks import Network

CONFIDENCE = 0.95
_BEST = {
    **dict.fromkeys(["clean", "float_clean", "float_robust"], (["images"], [False])),
    "robust": (["images", "value"], [False, True]),
    "certified": (["value"], [False]),
}
"""Metric -> which of several measurements of one network counts: the first by these columns, (whether) ascending."""
_LATEST = ["started"], [False]
_VALUES = ["value", "low", "high", "images", "seeds", "how"]


@dataclass(frozen=True)
class Section:
    """What is known of one network.

    Attributes:
        network: it.
        title: of the network, with the recipe of its training where another network has the same title otherwise.
        rows: one row per treatment: kind, treatment, report, and for each metric METRIC, METRIC_low, METRIC_high,
            METRIC_images, METRIC_seeds, METRIC_how. The metric ``robust`` is accuracy under attack in the first ball of
            ``balls``, ``robust 8/255`` that in another one. The float network comes first.
        balls: in which accuracy under attack was measured, first the one of most treatments.
        proved: the ball of the certified accuracies; empty if nothing was certified.
        unproved: the ball of the attacks, if nothing was proved in it but something in ``proved``; else empty.
    """

    network: Network
    title: str
    rows: DataFrame
    balls: list[str]
    proved: str
    unproved: str = ""

    @property
    def float_row(self) -> dict:
        """The row of the network as it was trained; empty if it was not measured."""
        rows = self.rows[self.rows.kind == FLOAT]
        return rows.iloc[0].to_dict() if len(rows) else {}


def sections(measured: DataFrame) -> list[Section]:
    """One section per network that anything was done to; networks of other trainings stand in it as treatments.

    A network that was only trained has a section if no network of its family has one. Those of most kinds of
    treatments come first.
    """
    figures = combined(measured)
    networks = list(dict.fromkeys(figures.network))
    kinds = figures.groupby("network").kind.nunique()
    chosen = []
    for family in dict.fromkeys(one.family for one in networks):
        members = sorted((one for one in networks if one.family == family), key=lambda one: not one.is_natural)
        chosen += [one for one in members if kinds[one] > 1] or members[:1]
    chosen.sort(key=lambda one: -kinds[one])
    return [_section(one, figures) for one in chosen]


def combined(measured: DataFrame) -> DataFrame:
    """One row per network, treatment, metric and ball, over its repetitions.

    Of several measurements of one network that on the most images counts, under attack the lowest of these; of proofs
    the highest, of all else the latest. The interval of one network is Wilson's over images, where their number is
    known; that of several seeds is Student's, of their mean. Sizes and operations have none.
    """
    keys, rows = ["network", "kind", "treatment", "metric", "within"], []
    for values, group in measured.sort_values("started", kind="stable").groupby(keys, sort=False, dropna=False):
        columns, ascending = _BEST.get(values[3], _LATEST)
        ordered = group.sort_values(columns, ascending=ascending, kind="stable", na_position="last")
        each = ordered.drop_duplicates("seed")
        low, high = _interval(each)
        first = ordered.iloc[0]
        row = dict(zip(keys, values, strict=True)) | {"value": each.value.mean(), "low": low, "high": high}
        row |= {"images": each.images.max(), "seeds": len(each), "how": first.how}
        rows.append(row | {"report": first.report})
    return DataFrame(rows, columns=[*keys, "value", "low", "high", "images", "seeds", "how", "report"])


def _interval(each: DataFrame) -> tuple[float, float]:
    """The interval of one figure from its repetitions, one row per seed."""
    metric, values = each.metric.iloc[0], each.value.to_numpy()
    if metric in ("bits", "macs"):
        return nan, nan
    if len(values) > 1 and numpy.ptp(values) > 0:
        reach = measures.student(values, level=CONFIDENCE)
        high = values.mean() + reach
        return max(values.mean() - reach, 0.0), high if metric == "milliseconds" else min(high, 1.0)
    if each.low.notna().all():
        return each.low.mean(), each.high.mean()
    return measures.wilson(values.mean(), each.images.min(), level=CONFIDENCE)


def _section(network: Network, figures: DataFrame) -> Section:
    own = figures[figures.network == network]
    family = [one for one in dict.fromkeys(figures.network) if one.family == network.family and one != network]
    names = _names([network, *family])
    others = figures[figures.network.isin(family) & (figures.kind == FLOAT) & (figures.metric != "predicted")]
    is_alone = [one.title for one in names].count(network.title) == 1
    title = network.title + ("" if is_alone or not network.recipe else f" ({network.recipe})")
    others = others.assign(kind=DEFENDED, treatment=others.network.map(names))
    rows = pandas.concat([own, others], ignore_index=True)
    balls = list(rows[rows.metric == "robust"].within.value_counts().index)
    proved, unproved = _proved_balls(rows, balls)
    rows = rows[(rows.metric != "certified") | (rows.within == proved)]
    rows = rows.assign(metric=[_column(row.metric, row.within, balls) for row in rows.itertuples()])
    table = rows.pivot_table(index=["kind", "treatment"], columns="metric", values=_VALUES, aggfunc="first", sort=False)
    table.columns = [metric if name == "value" else f"{metric}_{name}" for name, metric in table.columns]
    reports = rows.groupby(["kind", "treatment"], sort=False).report.first()
    table = table.assign(report=reports).reset_index().dropna(axis="columns", how="all")
    order = table.kind.map(KINDS.index)
    size = table.get("bits", order)
    table = table.assign(order=order, size=-size.fillna(0)).sort_values(["order", "size"], kind="stable")
    table = table.drop(columns=["order", "size"]).reset_index(drop=True)
    return Section(network, title, table, balls, proved, unproved)


def _column(metric: str, within: str, balls: list[str]) -> str:
    return f"{metric} {within}" if metric in ("robust", "float_robust") and within not in balls[:1] else metric


def _proved_balls(rows: DataFrame, balls: list[str]) -> tuple[str, str]:
    """The fields ``proved`` and ``unproved`` of a section.

    Shown is the ball of the attacks, else the most common; where nothing is proved in it, the largest in which anything
    is proved, those of the maximum norm before others.
    """
    certified = rows[rows.metric == "certified"]
    tried = [*certified.within.value_counts().index]
    first = (*(one for one in balls if one in tried), *tried, "")[0]
    found = sorted({*certified.within[certified.value > 0]}, key=_norm_and_radius)
    return (first, "") if first in found or not found else (found[-1], first)


def _norm_and_radius(ball: str) -> tuple[bool, float]:
    *norm, radius = ball.split()
    return not norm, float(radius.partition("/")[0])


def _names(networks: list[Network]) -> dict[Network, str]:
    """What each network is called among those of its family: its training, and the recipe where two share that."""
    trainings = [one.training or "trained elsewhere" for one in networks]
    return {
        one: training + (f" ({one.recipe})" if trainings.count(training) > 1 and one.recipe else "")
        for one, training in zip(networks, trainings, strict=True)
    }
