"""A title for every network of a table: two networks that differ in anything never bear the same one."""

import pandas
from pandas import DataFrame, Series

from rqlib.prediction.published import NETWORK, SETTING

APART = (
    *("dataset", "width", "seed", "objective", "recipe", "epochs", "checkpoint", "network", "weights", "options"),
    *(*SETTING, "calibration_images", "test_images", "generator_seed", "run"),
)
"""Columns that networks of the same model are told apart by, in this order, as far as they are needed."""


def identity(frame: DataFrame) -> list[str]:
    """Columns that tell networks apart: the run that they come from if the table says so, else names and setting."""
    return ["run"] if "run" in frame else [name for name in (*NETWORK, *SETTING) if name in frame]


def titles(frame: DataFrame) -> Series:
    """For each row the title of its network: its model, and what tells it from others of the same model.

    ``SmallCNN`` where there is one SmallCNN; ``SmallCNN, seed 0`` and ``SmallCNN, seed 1`` where there are two.
    """
    parts = [_of_model(str(model), rows) for model, rows in frame.groupby("model", sort=False)]
    return pandas.concat(parts)[frame.index] if parts else Series(dtype=object)


def _of_model(model: str, rows: DataFrame) -> Series:
    columns: list[str] = []
    wanted, found = _groups(rows, identity(rows)), 1
    for name in (name for name in APART if name in rows):
        if found < wanted and (more := _groups(rows, [*columns, name])) > found:
            columns, found = [*columns, name], more
    title = Series(model, index=rows.index, dtype=object)
    for name in columns:
        title += ", " + rows[name].map(lambda value, name=name: _words(name, value))
    return title


def _groups(rows: DataFrame, columns: list[str]) -> int:
    return len(rows.drop_duplicates(columns)) if columns else 1


def _words(name: str, value) -> str:
    """``seed 1``, ``width 0.25``, ``no seed``; of a dataset's path the end, and of numbers no needless digits."""
    if pandas.isna(value):
        return f"no {name}"
    value = f"{value:g}" if isinstance(value, float) else str(value)
    if name in ("dataset", "granularity", "objective", "recipe"):
        return value.removeprefix("imagefolder:").rsplit("/", 1)[-1]
    return f"{name} {value}"
