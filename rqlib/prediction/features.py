"""The table of predictors: one row a network and format, fractions throughout, checked.

Rows come from runs of `02_quantize` or from CSV files in the published form. Of every similarity the
table has a second column, divided by the network's own figure at INT_4, which makes networks
comparable; and the accuracy lost on generated images (pseudo-data) where it was measured.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas
from pandas import DataFrame, Series

from rqlib.core.vocabulary import did_you_mean

TARGET = "accuracy_loss"
PSEUDO = "pseudo_accuracy_loss"
NORMALIZED = "_normalized"
PREFIXES = ("js_", "relative_error")
PERCENT = {"js_flops": "js_legacy_macs", "js_param": "js_legacy_params"}
"""Published name -> ours: legacy similarities whose weights are percent shares, so 100 times ours."""
GENERATORS = {"boundary": f"{PSEUDO}_boundary", "trained": PSEUDO, "adjusted": f"{PSEUDO}_adjusted"}
NETWORK = ("dataset", "model", "width", "seed")
LABELS = {
    TARGET: "accuracy loss (fraction)",
    PSEUDO: "accuracy loss on pseudo-data (fraction)",
    f"{PSEUDO}_boundary": "accuracy loss on pseudo-data between classes (fraction)",
    f"{PSEUDO}_adjusted": "accuracy loss on adjusted pseudo-data (fraction)",
    "js_legacy_macs": "JS (legacy) weighted by MACs",
    "js_legacy_params": "JS (legacy) weighted by parameters",
    "js_macs": "JS weighted by MACs (nats)",
    "js_params": "JS weighted by parameters (nats)",
    "relative_error_macs": "relative error weighted by MACs",
    "relative_error_params": "relative error weighted by parameters",
}


def label(feature: str) -> str:
    """A column's name for an axis, with its unit."""
    if feature.endswith(NORMALIZED):
        return LABELS.get(feature.removesuffix(NORMALIZED), feature).removesuffix(" (nats)") + " / that of INT_4"
    return LABELS.get(feature, feature)


def short(feature: str) -> str:
    """A column's name in few words."""
    return (
        feature.replace(PSEUDO, "pseudo-loss")
        .replace("loss_adjusted", "loss (adjusted)")
        .replace("loss_boundary", "loss (boundary)")
        .replace(NORMALIZED, " / INT_4")
    )


def read_csv(path: str | Path, columns: Sequence[str] = ("model", "format", "accuracy")) -> DataFrame:
    """A CSV file with at least these columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: columns are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a table (CSV) at {path}, found no file")
    frame = pandas.read_csv(path)
    _require(frame, columns, str(path))
    return frame


def table(rows: DataFrame, pseudo: DataFrame | None = None) -> DataFrame:
    """Rows with every predictor that can be had from them.

    Published names become ours (js_flops -> js_legacy_macs / 100, fp32_accuracy -> float_accuracy);
    accuracy_loss = (float_accuracy - accuracy) / float_accuracy where it is not there (rows without
    accuracies, of a network to be predicted, have none); rows FP32 (the float network itself) are left out;
    each similarity also divided by the network's own at INT_4 (`*_normalized`); the loss on pseudo-data joined
    from ``pseudo`` (see `pseudo_losses`) on the columns they share.

    Raises:
        ValueError: columns are missing, accuracies are percent, or a network has a format twice.
    """
    _require(rows, ("model", "format"), "the table")
    rows = rows[rows.format != "FP32"]
    frame = rows.rename(columns={"fp32_accuracy": "float_accuracy"} | PERCENT).reset_index(drop=True)
    for name in set(PERCENT) & set(rows):
        frame[PERCENT[name]] /= 100
    if TARGET not in frame and {"accuracy", "float_accuracy"} <= set(frame):
        frame[TARGET] = (frame.float_accuracy - frame.accuracy) / frame.float_accuracy
    _check_fractions(frame)
    _check_unique(frame)
    for name in similarities(frame):
        if name.endswith(("_params", "_macs")) and name + NORMALIZED not in frame:
            frame[name + NORMALIZED] = frame[name] / _at_int4(frame, name)
    return frame if pseudo is None else _join(frame, pseudo)


def similarities(frame: DataFrame) -> list[str]:
    """Columns with a similarity of the weights, as measured: not yet divided by the figure of INT_4."""
    return [name for name in frame if name.startswith(PREFIXES) and not name.endswith(NORMALIZED)]


def names(frame: DataFrame) -> list[str]:
    """Columns that a loss can be predicted from: losses on pseudo-data, similarities over INT_4, raw similarities."""
    lost = [name for name in GENERATORS.values() if name in frame]
    raw = similarities(frame)
    return [*lost, *(name + NORMALIZED for name in raw if name + NORMALIZED in frame), *raw]


def pseudo_losses(rows: DataFrame) -> DataFrame:
    """Loss on generated images, one row a network and format, one column a generator.

    loss = (a_FP32 - a) / a_FP32 of the column pseudo_clean; generator "trained" gives
    pseudo_accuracy_loss, "adjusted" pseudo_accuracy_loss_adjusted.

    Raises:
        ValueError: columns are missing, accuracies are percent, or a network has no row FP32.
    """
    _require(rows, ("model", "generator", "format", "pseudo_clean"), "the table of pseudo-data")
    _check_fractions(rows, ["pseudo_clean"])
    keys = [name for name in NETWORK if name in rows]
    wide = rows.pivot_table(index=[*keys, "format"], columns="generator", values="pseudo_clean").reset_index()
    unknown = set(wide) - {*keys, "format", *GENERATORS}
    if unknown:
        raise ValueError(did_you_mean("generator", str(min(unknown)), GENERATORS))
    full = wide[wide.format == "FP32"].set_index(keys)
    for name in set(GENERATORS) & set(wide):
        reference = _looked_up(wide, keys, full[name])
        if reference.isna().any():
            raise ValueError(
                f"expected a row FP32 of every network, got none for {wide[reference.isna()].model.iloc[0]}"
            )
        wide[name] = 1 - wide[name] / reference
    return wide[wide.format != "FP32"].rename(columns=GENERATORS).rename_axis(columns=None).reset_index(drop=True)


def complete(frame: DataFrame, columns: Sequence[str]) -> DataFrame:
    """The rows that have a value in all of the columns; prints how many were dropped, and for which column.

    Raises:
        ValueError: a column is missing, or no row is left.
    """
    _require(frame, columns, "the table")
    whole = frame.dropna(subset=list(columns))
    if len(whole) < len(frame):
        print(f"dropped {len(frame) - len(whole)} of {len(frame)} rows without a value ({missing(frame, columns)})")
    if whole.empty:
        raise ValueError(f"expected rows with values in {', '.join(columns)}, got none ({missing(frame, columns)})")
    return whole


def missing(frame: DataFrame, columns: Iterable[str]) -> str:
    """How many rows have no value, column by column: ``"js_macs 3, pseudo_accuracy_loss 14"``; empty where none."""
    counts = frame[list(dict.fromkeys(columns))].isna().sum()
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def _require(frame: DataFrame, columns: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        hint = did_you_mean("column", missing[0], map(str, frame.columns))
        raise ValueError(f"{where}: expected columns {', '.join(columns)}, got none named {', '.join(missing)}; {hint}")


def _check_fractions(frame: DataFrame, columns: Sequence[str] = ("accuracy", "float_accuracy", TARGET, PSEUDO)) -> None:
    for name in set(columns) & set(frame):
        largest = frame[name].max()
        if largest > 1:
            raise ValueError(f"expected {name} as a fraction in [0, 1], got {largest:.6g}; divide the column by 100")


def _check_unique(frame: DataFrame) -> None:
    keys = [*_identity(frame), "format"]
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        first = ", ".join(f"{name} {twice[name].iloc[0]}" for name in keys)
        raise ValueError(f"expected one row a network and format, got {len(twice)} more than once (first: {first})")


def _identity(frame: DataFrame) -> list[str]:
    """What tells networks apart: the run of 02_quantize they come from, else their names."""
    return ["run"] if "run" in frame else [name for name in NETWORK if name in frame]


def _at_int4(frame: DataFrame, name: str) -> Series:
    """Each row's network's own figure at INT_4; no value where there is none, or where it is 0."""
    keys = _identity(frame)
    own = frame[frame.format == "INT_4"].set_index(keys)[name]
    return _looked_up(frame, keys, own[own > 0])


def _looked_up(frame: DataFrame, keys: list[str], values: Series) -> Series:
    """The value of each row's keys, no value where there is none."""
    found = frame[keys].merge(values.rename("value").reset_index(), how="left", on=keys)["value"]
    return found.set_axis(frame.index)


def _join(frame: DataFrame, pseudo: DataFrame) -> DataFrame:
    """Rows with their loss on pseudo-data; prints how many have none."""
    keys = [name for name in (*NETWORK, "format") if name in frame and name in pseudo]
    added = [name for name in GENERATORS.values() if name in pseudo]
    joined = frame.drop(columns=added, errors="ignore").merge(pseudo[keys + added], how="left", on=keys, validate="m:1")
    for name in added:
        print(f"{name}: measured for {joined[name].notna().sum()} of {len(joined)} rows")
    return joined
