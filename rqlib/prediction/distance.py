"""How far a network lies outside what was measured, feature by feature.

Curves and intervals speak for networks like those that they were fitted to. A network is compared with these in the
features that the predictors read, and in plain ones (`anatomy.PLAIN`): with BatchNorm or without, how deep, how large.
"""

import numpy
from numpy import ndarray
from pandas import DataFrame, Series

from rqlib.prediction.anatomy import COUNTS, PLAIN

MARGIN = 0.05
"""A feature is inside up to this share of its range beyond the ends."""
LEAST = 0.5
"""A plain feature's range counts as at least so wide: half of all layers, or half a power of ten."""
Seen = dict[str, tuple[float, float]]
"""Feature -> smallest and largest value measured."""


def plain_seen(frame: DataFrame) -> Seen:
    """The range of each plain feature over the measured networks, of those that are known of any."""
    known = [name for name in PLAIN if name in frame and frame[name].notna().any()]
    return {name: (float(frame[name].min()), float(frame[name].max())) for name in known}


def beyond(values: Series, name: str, low: float, high: float) -> ndarray:
    """How many ranges a feature's values (N,) lie outside the range [low, high] of the measured networks.

        distance = max(0, low - v, v - high) / (high - low) - 0.05, and 0 where that is negative

    Numbers of layers and weights are compared by their log10. The range of a plain feature counts as at least 0.5. A
    value that is not known has distance 0.
    """
    given = values.to_numpy(dtype=float)
    if name in COUNTS:
        given, low, high = numpy.log10(numpy.maximum(given, 1)), numpy.log10(max(low, 1)), numpy.log10(max(high, 1))
    span = max(high - low, LEAST) if name in PLAIN else high - low
    outside = numpy.fmax(numpy.fmax(low - given, given - high), 0)
    return numpy.fmax(outside / span - MARGIN, 0)


def measured(rows: DataFrame, seen: Seen) -> DataFrame:
    """For each row its distance, the largest of its features', and their names: columns distance, outside.

    The distance is 0 and the names are empty where the row lies inside the range of every feature.
    """
    each = _each(rows, seen)
    names = [", ".join(each.columns[line > 0]) for line in each.to_numpy()]
    return DataFrame({"distance": each.max(axis=1).fillna(0.0), "outside": names}, index=rows.index)


def unlike(rows: DataFrame, seen: Seen) -> DataFrame:
    """The features in which a network lies outside what was measured: one row per feature, the furthest first.

    Columns: feature, formats (number of rows outside), value (of the row that is furthest outside), measured_from,
    measured_to, distance.
    """
    each = _each(rows, seen)
    found = [
        {
            "feature": name,
            "formats": int((values > 0).sum()),
            "value": rows[name].loc[values.idxmax()],
            "measured_from": seen[name][0],
            "measured_to": seen[name][1],
            "distance": values.max(),
        }
        for name, values in each.items()
        if values.max() > 0
    ]
    columns = ["feature", "formats", "value", "measured_from", "measured_to", "distance"]
    table = DataFrame(found, columns=columns)
    return table.sort_values("distance", ascending=False, kind="stable", ignore_index=True)


def _each(rows: DataFrame, seen: Seen) -> DataFrame:
    """The distance of every row in every feature that the rows have."""
    found = {name: beyond(rows[name], name, *ends) for name, ends in seen.items() if name in rows}
    return DataFrame(found, index=rows.index)
