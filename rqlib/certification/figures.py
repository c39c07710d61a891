"""Figures of certificates: the ladder of accuracies against the radius, and what smoothing certifies in L2 balls."""

from collections.abc import Mapping

import numpy
import plotly.graph_objects as go
from pandas import DataFrame

from rqlib.certification.cascade import LADDER
from rqlib.core import plots

_SHADES = ("#4D4D4D", plots.PALETTE[1], plots.PALETTE[2], plots.PALETTE[5], plots.PALETTE[0])
_NAMES = {"clean": "clean images", "PGD": "under PGD", "CROWN": "CROWN certifies", "CROWN-IBP": "CROWN-IBP certifies"}
_BELOW = {"orientation": "h", "y": -0.3, "x": 0}


def accuracy_ladder(table: DataFrame, *, title: str = "What withstands, and what is proved to") -> go.Figure:
    """Clean accuracy, that under attack, and what three bounds certify, against the radius; from `ladder`."""
    figure, rows = go.Figure(), table.sort_values("epsilon_255")
    for name, shade, dash in zip(LADDER, _SHADES, ("dot", "dash", "solid", "solid", "solid"), strict=True):
        if name not in rows:
            continue
        text = _NAMES.get(name, f"{name} certifies")
        line = go.Scatter(x=rows.epsilon_255, y=rows[name], name=text, mode="lines+markers")
        line.update(
            line={"color": shade, "dash": dash}, hovertemplate=f"{text}, %{{x:g}}/255: %{{y:.4f}}<extra></extra>"
        )
        figure.add_trace(line)
    figure.update_xaxes(title="L∞ radius (gray levels of 255)")
    figure.update_yaxes(title="accuracy (fraction)", range=[-0.02, 1.02])
    return figure.update_layout(title=title, legend=_BELOW)


def smoothed_accuracy(
    tables: Mapping[str, DataFrame], *, title: str = "Certified by randomized smoothing"
) -> go.Figure:
    """For each network, or each sigma, the fraction certified against the L2 radius; from `Smoothed.certify`."""
    figure = go.Figure()
    for name, table in tables.items():
        right = table.predicted == table.label
        radii = numpy.sort(table.radius_l2[right])
        x = [0.0, *radii, *radii[-1:]]
        shares = numpy.arange(len(radii), -1, -1) / len(table)
        line = go.Scatter(x=x, y=[*shares[:1], *shares], name=name, mode="lines")
        line.update(line={"color": plots.color(name, tables), "dash": plots.dash(name, tables), "shape": "vh"})
        line.update(hovertemplate=f"{name}, radius %{{x:.3f}}: %{{y:.4f}}<extra></extra>")
        figure.add_trace(line)
    reach = max((table.radius_l2.max() for table in tables.values()), default=0.0)
    figure.update_xaxes(title="L2 radius (pixels in [0, 1])", range=[0, 1.05 * reach or 1])
    figure.update_yaxes(title="certified accuracy (fraction)", range=[-0.02, 1.02])
    return figure.update_layout(title=title, legend=_BELOW, showlegend=True)
