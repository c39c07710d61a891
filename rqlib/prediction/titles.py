"""A title for every network of a table: two networks that differ in anything never bear the same one."""

import pandas
from pandas import DataFrame, Series

from rqlib.prediction.published import NETWORK, SETTING

APART = (
    *("dataset", "width", "seed", "recipe", "epochs", "checkpoint", "network", "weights", "options"),
    *(*SETTING, "calibration_images", "test_images", "generator_seed", "run"),
)
"""Columns that networks of the same model are told apart by, in this order, as far as they are needed.

What they were trained for, their objective, always stands in the title if it is known.
"""


def identity(frame: DataFrame) -> list[str]:
    """Columns that tell networks apart: the run that they come from if the table says so, else names and setting."""
    return ["run"] if "run" in frame else [name for name in (*NETWORK, *SETTING) if name in frame]


def titles(frame: DataFrame) -> Series:
    """For each row the title of its network: its model, and what tells it from others of the same model.

    ``SmallCNN, natural`` where there is one such SmallCNN; ``SmallCNN, natural, seed 0`` and
    ``SmallCNN, natural, seed 1`` where there are two; ``SmallCNN`` where the objective is not known.
    """
    return _named(frame, identity(frame))


def network_names(frame: DataFrame) -> Series:
    """For each row the name of its network, whatever it was measured with: rows of one network are left out together.

    Networks are the same if they agree in all columns of `published.NETWORK` that the table has.
    """
    return _named(frame, [name for name in NETWORK if name in frame])


def families(frame: DataFrame) -> Series:
    """For each row the family of its network, by its model's name in lower case up to the first number or underscore.

    ``VGG_16`` and ``VGG_19`` are ``vgg``, ``torchvision:mobilenet_v3_small`` and ``MobileNetV2`` are ``mobilenet``.
    """
    names = frame.model.str.rsplit(":", n=1).str[-1].str.lower()
    return names.str.replace(r"(v?\d|_).*", "", regex=True)


def _named(frame: DataFrame, identity: list[str]) -> Series:
    parts = [_of_model(str(model), rows, identity) for model, rows in frame.groupby("model", sort=False)]
    return pandas.concat(parts)[frame.index] if parts else Series(dtype=object)


def _of_model(model: str, rows: DataFrame, identity: list[str]) -> Series:
    columns = ["objective"] if "objective" in rows and rows.objective.notna().any() else []
    wanted, found = _groups(rows, identity), _groups(rows, columns)
    for name in (name for name in APART if name in rows):
        if found < wanted and (more := _groups(rows, [*columns, name])) > found:
            columns, found = [*columns, name], more
    title = Series(model, index=rows.index, dtype=object)
    for name in columns:
        title += ", " + _column(name, rows[name])
    return title


def _column(name: str, values: Series) -> Series:
    """The values in few words; in full where these are the same for different values."""
    words = values.map(lambda value: _words(name, value))
    if words.nunique() == values.nunique(dropna=False):
        return words
    return values.map(lambda value: f"no {name}" if pandas.isna(value) else f"{name} {value}")


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
