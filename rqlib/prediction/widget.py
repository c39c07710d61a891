"""The R2 explorer: choose data sets, networks, predictor and family; see the curve and its R2 in and out of sample."""

import ipywidgets
import plotly.graph_objects as go
from pandas import DataFrame

from rqlib.core import widgets
from rqlib.prediction import features, figures, fits
from rqlib.prediction.features import TARGET

FAMILIES = tuple(name for name in fits.FAMILIES if name not in ("identity", "mean", "lookup", "blend"))
"""Families that draw a curve of one feature."""
NARROW = {"layout": {"width": "215px"}, "style": {"description_width": "62px"}}


def r2_explorer(frame: DataFrame, *, group: str = "model") -> widgets.Explorer:
    """Controls for data sets, networks, feature and family above a figure of the chosen rows and their curve.

    ``frame`` is a table from `prediction.table`; the values of the column ``group`` are left out, one at a time.
    """
    frame = frame if "dataset" in frame else frame.assign(dataset="not named")

    def draw(datasets: tuple, networks: tuple, feature: str, family: str) -> go.Figure:
        rows = frame[frame.dataset.isin(datasets) & frame.title.isin(networks)].dropna(subset=[feature, TARGET])
        try:
            return r2_figure(rows, feature, family, group=group)
        except ValueError as error:
            return figures.message(str(error))

    return widgets.explorer(
        draw,
        datasets=_several(frame.dataset, "datasets"),
        networks=_several(frame.title, "networks"),
        feature=ipywidgets.Dropdown(options=features.names(frame), description="feature", **NARROW),
        family=ipywidgets.Dropdown(options=FAMILIES, description="family", value="rational_3", **NARROW),
    )


def r2_figure(rows: DataFrame, feature: str, family: str, *, group: str = "model") -> go.Figure:
    """Rows, their curve and its interval; the title says R2 in sample and with one group left out.

    Raises:
        ValueError: too few rows, or a constant feature.
    """
    several = rows[group].nunique() > 1
    fit = fits.fit(rows[[feature]], rows[TARGET], family, groups=rows[group] if several else None)
    left_out = fits.scores(*fit.left_out()) if several else None
    title = f"{family} of {features.short(feature)}, {len(rows)} rows<br>R<sup>2</sup> in sample {fit.r2:.3f}, "
    group = features.label(group)
    title += f"leaving one {group} out {left_out['r2']:.3f}" if left_out else f"one {group} alone: none to leave out"
    return figures.pooled_curve(rows, fit, title=title)


def _several(values, description: str) -> ipywidgets.SelectMultiple:
    options = sorted(values.unique())
    rows = min(6, len(options))
    return ipywidgets.SelectMultiple(options=options, value=options, description=description, rows=rows, **NARROW)
