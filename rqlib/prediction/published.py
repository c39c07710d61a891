"""Tables in the published form, and their way into ours.

Two tables of quantized networks have been published. One has a row per network and format: the columns ``model``,
``format``, ``fp32_accuracy``, ``accuracy``, and similarities whose weights are shares in percent. The other has a row
per network, generator and format (FP32: the float network itself): accuracies on test images and on generated ones,
clean and attacked, in the columns ``test_clean``, ``pseudo_clean``, ``test_pgd``, ``pseudo_pgd`` and so on.

`robustness.on_sets` and `04_generator` write the same accuracies wide: one row per network and format, with one column
for each set of images and each attack (``test_pgd``, ``trained_pgd``, ``boundary_pgd``). Whoever reads accuracies on
generated images takes either form and calls `by_generator`.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas
from pandas import DataFrame, Series

from rqlib.core import files
from rqlib.core.vocabulary import did_you_mean
from rqlib.data.datasets import data_root

FLOAT = "FP32"
"""The format of rows of the float network itself."""
NETWORK = ("dataset", "model", "width", "objective", "seed")
"""Columns that tell networks apart, those of them that a table has."""
SETTING = {"granularity": "tensor", "ranges": "minmax", "nonnegative": "signed", "bias": "float"}
"""Column of a setting -> what it was in rows that do not say. The words are those of `quantization.ptq`."""
PSEUDO = "pseudo_accuracy_loss"
GENERATORS = {
    "refined": f"{PSEUDO}_refined",
    "boundary": f"{PSEUDO}_boundary",
    "trained": PSEUDO,
    "adjusted": f"{PSEUDO}_adjusted",
}
"""Name of a set of generated images -> our column for the accuracy that is lost on it; the best predictor first."""
BEST = f"{PSEUDO}_best"
"""The loss on refined images; for a network without BatchNorm, which has none, that on images between classes."""
HARD = "refined", "boundary", "adjusted"
"""Sets of generated images that are as hard for a quantized network as real ones are, or nearly so."""
MEAN = f"{PSEUDO}_mean"
"""The mean loss on those of `HARD` that a network has; each kind errs in its own way."""
PERCENT = {"js_flops": "js_legacy_macs", "js_param": "js_legacy_params"}
"""Published name -> our name of similarities whose weights are shares in percent, so that they are 100 times ours."""


def read_table(path: str | Path, columns: Sequence[str] = ("model", "format", "accuracy")) -> DataFrame:
    """Read a table that has at least these columns: a CSV or Parquet file, or the folder of a run (its rows.parquet).

    The path is absolute, or relative to the working folder, to the workbook's folder, or to the folder of data (the
    variable ``RQLIB_DATA``): the first of these that has it.

    Raises:
        FileNotFoundError: there is no such file; the message says where it was looked for.
        ValueError: it is no table; columns are missing.
    """
    path = found(path)
    try:
        frame = files.load_table(path) if path.suffix == ".parquet" else pandas.read_csv(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a table (CSV or Parquet), got {error}") from error
    require(frame, columns, str(path))
    return frame


def found(path: str | Path) -> Path:
    """Where the table of `read_table` lies.

    Raises:
        FileNotFoundError: there is no such file; the message says where it was looked for.
    """
    places = [folder / path for folder in (Path.cwd(), files.project_root(), data_root())]
    places = [place / "rows.parquet" if place.is_dir() else place for place in dict.fromkeys(places)]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"expected a table (CSV, Parquet, or the folder of a finished run), found none at "
        f"{' or '.join(map(str, dict.fromkeys(places)))}"
    )


def renamed(rows: DataFrame) -> DataFrame:
    """The rows with our names and units: js_flops -> js_legacy_macs / 100, fp32_accuracy -> float_accuracy."""
    frame = rows.rename(columns={"fp32_accuracy": "float_accuracy"} | PERCENT).reset_index(drop=True)
    for name in set(PERCENT) & set(rows):
        frame[PERCENT[name]] /= 100
    return frame


def by_generator(rows: DataFrame) -> DataFrame:
    """Accuracies on generated images as one row per network, generator and format: test_clean, pseudo_clean, ...

    Args:
        rows: of `robustness.on_sets` or `04_generator`: the set ``test`` is the real one, every other set becomes a
            generator, with the rows that have an accuracy on it. Rows that have the published form, or no accuracies
            on generated images, stay as they are.
    """
    sets = [name.removesuffix("_clean") for name in rows if name.endswith("_clean")]
    if "generator" in rows or "test" not in sets or len(sets) < 2:
        return rows
    attacks = [name.removeprefix("test_") for name in rows if name.startswith("test_")]
    attacks = [name for name in attacks if all(f"{one}_{name}" in rows for one in sets)]
    shared = [name for name in rows if not name.startswith(tuple(f"{one}_" for one in sets))]

    def of(generator: str) -> DataFrame:
        sides = {"test": "test", generator: "pseudo"}
        names = {f"{old}_{attack}": f"{new}_{attack}" for attack in attacks for old, new in sides.items()}
        measured = rows[[*shared, *names]].rename(columns=names).dropna(subset="pseudo_clean")
        return measured.assign(generator=generator)

    return pandas.concat([of(name) for name in sets if name != "test"], ignore_index=True)


def was_attacked(rows: DataFrame) -> bool:
    """Whether the rows, in either form, hold accuracies under PGD on real and on generated images."""
    return {"generator", "test_pgd", "pseudo_pgd"} <= set(by_generator(rows))


def losses(rows: DataFrame) -> DataFrame:
    """Loss of accuracy on generated images: one row per network and format, one column per generator.

    loss = (a_FP32 - a) / a_FP32 of the column pseudo_clean of rows in either form (`by_generator`). `GENERATORS` names
    the columns. Rows of `04_generator` have these columns already, for more formats than were attacked: they are kept.

    Raises:
        ValueError: columns are missing, accuracies are in percent, or a network has no row FP32.
    """
    keys = [name for name in (*NETWORK, *SETTING) if name in rows]
    if known := [name for name in GENERATORS.values() if name in rows]:
        require(rows, ("model", "format"), "the table of pseudo-data")
        check_fractions(rows, known)
        return rows[rows.format != FLOAT][[*keys, "format", *known]].dropna(subset=known, how="all")
    rows = by_generator(rows)
    require(rows, ("model", "generator", "format", "pseudo_clean"), "the table of pseudo-data")
    check_fractions(rows, ["pseudo_clean"])
    each = rows.groupby([*keys, "format", "generator"], dropna=False).pseudo_clean.mean().dropna()
    wide = each.unstack("generator").reset_index()
    if unknown := set(wide) - {*keys, "format", *GENERATORS}:
        raise ValueError(did_you_mean("generator", str(min(unknown)), GENERATORS))
    whole = wide[wide.format == FLOAT].set_index(keys)
    for name in set(GENERATORS) & set(wide):
        reference = looked_up(wide, keys, whole[name])
        alone = wide[name].notna() & reference.isna()
        if alone.any():
            without = wide[alone].model.iloc[0]
            raise ValueError(f"expected a row {FLOAT} of every network, got none for {without}")
        wide[name] = 1 - wide[name] / reference
    return wide[wide.format != FLOAT].rename(columns=GENERATORS).rename_axis(columns=None).reset_index(drop=True)


def require(frame: DataFrame, columns: Sequence[str], where: str) -> None:
    """Raise a ValueError unless a table has these columns; ``where`` is what the message calls the table."""
    missing = [name for name in columns if name not in frame]
    if missing:
        hint = did_you_mean("column", missing[0], map(str, frame.columns))
        raise ValueError(f"{where}: expected columns {', '.join(columns)}, got none named {', '.join(missing)}; {hint}")


def check_fractions(frame: DataFrame, columns: Sequence[str]) -> None:
    """Raise a ValueError where one of the columns that the table has exceeds 1."""
    for name in set(columns) & set(frame):
        largest = frame[name].max()
        if largest > 1:
            raise ValueError(f"expected {name} as a fraction in [0, 1], got {largest:.6g}; divide the column by 100")


def looked_up(frame: DataFrame, keys: list[str], values: Series) -> Series:
    """For each row the value that belongs to its keys, NaN if there is none."""
    found = frame[keys].merge(values.rename("value").reset_index(), how="left", on=keys)["value"]
    return found.set_axis(frame.index)
