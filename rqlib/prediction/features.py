"""The table of predictors: one row per network and format, all figures as fractions.

Rows come from runs of `02_quantize` or `04_generator`, or from CSV files (`prediction.published`). The table gives
every similarity a second column, divided by the network's own figure at INT_4, which makes networks comparable. Where
the accuracy lost on generated images (pseudo-data) was measured, it is a predictor too.
"""

from collections.abc import Iterable, Sequence

from pandas import DataFrame, Series

from rqlib import quantization
from rqlib.prediction import anatomy, published, titles
from rqlib.prediction.published import BEST, FLOAT, GENERATORS, HARD, MEAN, NETWORK, PSEUDO, SETTING

TARGET = "accuracy_loss"
NORMALIZED = "_normalized"
PREFIXES = ("js_", "relative_error")
SPREAD = "_std"
"""Ending of a column that holds a spread over seeds (`workbook.summary`), not a measurement."""
FRACTIONS = ("accuracy", "float_accuracy", TARGET, PSEUDO)
LABELS = {
    "network_name": "network",
    "network_family": "family of networks",
    TARGET: "relative accuracy loss (fraction)",
    PSEUDO: "accuracy loss on pseudo-data (fraction)",
    BEST: "accuracy loss on refined pseudo-data, or between classes (fraction)",
    MEAN: "mean accuracy loss on refined, boundary and adjusted pseudo-data (fraction)",
    f"{PSEUDO}_refined": "accuracy loss on refined pseudo-data (fraction)",
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
        .replace("loss_refined", "loss (refined)")
        .replace("loss_best", "loss (best)")
        .replace("loss_mean", "loss (mean)")
        .replace(NORMALIZED, " / INT_4")
    )


def table(rows: DataFrame, pseudo: DataFrame | None = None) -> DataFrame:
    """Quantized networks with every predictor that their rows allow.

    Published names become ours (`published.renamed`). Rows FP32, of the float network itself, are left out. These
    columns are added unless the rows have them:

    - kind, bits, exponent_bits: of the format;
    - accuracy_loss = (float_accuracy - accuracy) / float_accuracy, where the rows know both accuracies (those of a
      network that is to be predicted do not);
    - title: a name for each network that no other one bears (`titles.titles`); network_name, which is the same for
      all rows of one network, whatever it was measured with (`titles.network_names`); network_family, the same for
      networks of like names (`titles.families`);
    - ``*_normalized``: each similarity divided by the network's own at INT_4;
    - plain features of the networks, as far as they can be known (`anatomy.completed`);
    - the losses on generated images, where ``pseudo`` is given. Losses that the rows have are kept where it has none.
      Where refined images were measured, `published.BEST` is the column that every network has; of a network of
      which two kinds of `published.HARD` were, `published.MEAN` is their mean.

    Args:
        rows: one row per network and format, with the columns model and format at least.
        pseudo: accuracies on generated images (`published.losses`), joined on the columns that both tables have.

    Raises:
        ValueError: columns are missing, accuracies are in percent, or a network has a format twice.
    """
    published.require(rows, ("model", "format"), "the table")
    frame = published.renamed(rows[rows.format != FLOAT])
    if TARGET not in frame and {"accuracy", "float_accuracy"} <= set(frame):
        frame[TARGET] = (frame.float_accuracy - frame.accuracy) / frame.float_accuracy
    published.check_fractions(frame, FRACTIONS)
    _check_unique(frame)
    frame = _with_formats(frame)
    for name in similarities(frame):
        if name.endswith(("_params", "_macs")) and name + NORMALIZED not in frame:
            frame[name + NORMALIZED] = frame[name] / _at_int4(frame, name)
    frame = anatomy.completed(frame)
    if "title" not in frame:
        frame = frame.assign(title=titles.titles(frame))
    if "network_name" not in frame:
        frame = frame.assign(network_name=titles.network_names(frame))
    frame = frame.assign(network_family=titles.families(frame))
    return _with_best_and_mean(frame if pseudo is None else _join(frame, published.losses(pseudo)))


def _with_formats(frame: DataFrame) -> DataFrame:
    formats = {name: quantization.parse(name) for name in frame.format.unique()}
    missing = [name for name in ("kind", "bits", "exponent_bits") if name not in frame]
    return frame.assign(**{
        column: frame.format.map({name: getattr(one, column) for name, one in formats.items()}) for column in missing
    })  # fmt: skip


def similarities(frame: DataFrame) -> list[str]:
    """Columns with a similarity of the weights as it was measured, not divided by the figure of INT_4."""
    return [name for name in frame if name.startswith(PREFIXES) and not name.endswith((NORMALIZED, SPREAD))]


def names(frame: DataFrame) -> list[str]:
    """Columns that a loss can be predicted from: losses on pseudo-data, similarities over INT_4, raw similarities."""
    lost = [name for name in (BEST, *GENERATORS.values(), MEAN) if name in frame]
    if BEST in frame:
        lost.remove(GENERATORS["refined"])
    raw = similarities(frame)
    return [*lost, *(name + NORMALIZED for name in raw if name + NORMALIZED in frame), *raw]


def complete(frame: DataFrame, columns: Sequence[str]) -> DataFrame:
    """The rows that have a value in all of the columns; prints how many were dropped, and for which column.

    Raises:
        ValueError: a column is missing, or no row is left.
    """
    published.require(frame, columns, "the table")
    whole = frame.dropna(subset=list(columns))
    if len(whole) < len(frame):
        print(f"dropped {len(frame) - len(whole)} of {len(frame)} rows without a value ({missing(frame, columns)})")
    if whole.empty:
        raise ValueError(f"expected rows with values in {', '.join(columns)}, got none ({missing(frame, columns)})")
    return whole


def missing(frame: DataFrame, columns: Iterable[str]) -> str:
    """How many rows lack a value, column by column: ``"js_macs 3, pseudo_accuracy_loss 14"``; empty if none does."""
    counts = frame[list(dict.fromkeys(columns))].isna().sum()
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def _check_unique(frame: DataFrame) -> None:
    keys = [*titles.identity(frame), "format"]
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        first = ", ".join(f"{name} {twice[name].iloc[0]}" for name in keys)
        raise ValueError(f"expected one row per network and format, got {len(twice)} more than once (first: {first})")


def _at_int4(frame: DataFrame, name: str) -> Series:
    """For each row its network's own figure at INT_4; NaN where there is none, or where it is 0."""
    keys = titles.identity(frame)
    own = frame[frame.format == "INT_4"].set_index(keys)[name]
    return published.looked_up(frame, keys, own[own > 0])


def _join(frame: DataFrame, lost: DataFrame) -> DataFrame:
    """Rows with their losses on pseudo-data; prints for how many they were measured."""
    keys = [name for name in (*NETWORK, *SETTING, "format") if name in frame and name in lost]
    added = [name for name in GENERATORS.values() if name in lost]
    own = lost[lost.model.isin(frame.model)]
    if own.duplicated(keys).any():
        several = own[own.duplicated(keys)].iloc[0]
        raise ValueError(
            f"expected losses on pseudo-data of one network {several.model}, got several in format {several.format}; "
            f"keep those of one, or give both tables more of the columns {', '.join((*NETWORK, *SETTING))}"
        )
    joined = frame.merge(own[keys + added], how="left", on=keys, validate="m:1", suffixes=("_before", ""))
    for name in added:
        if f"{name}_before" in joined:
            joined[name] = joined[name].fillna(joined.pop(f"{name}_before"))
        print(f"{name}: measured for {joined[name].notna().sum()} of {len(joined)} rows")
    return joined.drop(columns=[name for name in added if joined[name].isna().all()])


def _with_best_and_mean(frame: DataFrame) -> DataFrame:
    refined, between = GENERATORS["refined"], GENERATORS["boundary"]
    hard = [GENERATORS[name] for name in HARD if GENERATORS[name] in frame]
    measured = frame[hard].notna().sum(axis=1)
    if (measured > 1).any():
        frame = frame.assign(**{MEAN: frame[hard].mean(axis=1).where(measured > 1)})
    if refined not in frame:
        return frame
    return frame.assign(**{BEST: frame[refined].fillna(frame[between]) if between in frame else frame[refined]})


def overview(frame: DataFrame) -> DataFrame:
    """One row per network of a `table`: the number of its formats, its float accuracy, its median and worst loss."""
    networks = frame.groupby("title", sort=False)
    columns = {"rows": networks.format.size()}
    if "float_accuracy" in frame:
        columns["float_accuracy"] = networks.float_accuracy.first()
    return DataFrame(columns | {"median_loss": networks[TARGET].median(), "worst_loss": networks[TARGET].max()})
