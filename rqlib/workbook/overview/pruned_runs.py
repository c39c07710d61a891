"""The rows of a run of 06_prune: pruned, without channels, compressed jointly, certified."""

from collections.abc import Iterator

from pandas import DataFrame

from rqlib.pruning import certificates
from rqlib.pruning.rivals import DENSE
from rqlib.workbook.overview.kinds import CHANNELS, DEFENDED, FLOAT, FORMAT, JOINT, PRUNED, ball, each, proved
from rqlib.workbook.overview.networks import Source

_FILTERS = {"dense": (FLOAT, FLOAT), "half removed": (CHANNELS, "half of the channels removed")}


def pruning(source: Source, by_run: dict) -> Iterator[dict]:
    """06_prune: pruned at each size, as they are and in eight bits; without channels; compressed jointly; proved."""
    values, rows = source.parameters, source.table()
    images, within = source.images(values.get("test_images")), ball(values["epsilon_255"])
    written = {(row["method"], row["kept"]): 8 * row["file_bytes"] for row in source.table("sizes")}
    sized = {(row["method"], row["kept"]): row for row in rows if row.get("coded_bits")}
    how = f"PGD-{values.get('era_steps')}x{values.get('era_restarts')}"
    dense = next((row for row in rows if row["method"] == "dense"), {})
    for row in rows:
        kind, treatment = _treatment(source, row)
        figures = {"clean": row.get("clean_accuracy"), "robust": row.get("robust_accuracy")}
        if kind != FLOAT:
            figures |= {"float_clean": dense.get("clean_accuracy"), "float_robust": dense.get("robust_accuracy")}
        size = _size(row, sized, written)
        yield from each(source, kind, treatment, images=images, within=within, how=how, bits=size, **figures)
    filters = DataFrame(source.table("filters")).set_index("row") if source.table("filters") else DataFrame()
    for title in [title for title in ("dense", "half removed") if title in filters]:
        found, (kind, treatment) = filters[title], _FILTERS[title]
        figures = {"macs": found["macs"], "milliseconds": found["milliseconds"]}
        if kind == CHANNELS:
            figures |= {"clean": found["clean_accuracy"], "float_clean": filters["dense"]["clean_accuracy"]}
            figures["bits"] = found["bits"]
        yield from each(source, kind, treatment, images=images, **figures)
    few = source.images(values.get("test_images"), values.get("certified_images"))
    certified = source.table("certified")
    plain = [row for row in certified if (row["method"], row["format"]) == ("dense", certificates.FLOAT)]
    dense_at = {row["epsilon_255"]: row for row in plain}
    for row in certified:
        form = "" if row["format"] == certificates.FLOAT else f" {row['format']}"
        kind, treatment = _treatment(source, row | {"method": row["method"] + form})
        whole = None if kind == FLOAT else dense_at.get(row["epsilon_255"])
        yield from proved(source, kind, treatment, row, few, whole)
    yield from _proved_by_noise(source, rows)


def _treatment(source: Source, row: dict) -> tuple[str, str]:
    """(kind, name) of a row of 06_prune, which has method and kept."""
    method, goal = row["method"], source.parameters.get("finetune_objective", "")
    own = source.network.training.partition(" at ")[0]
    if method == "dense":
        return FLOAT, FLOAT
    if method.startswith("dense "):
        return FORMAT, method.removeprefix("dense ")
    if row.get("file_bytes"):
        compression = row.get("compression")
        size = f"{100 * row['kept']:.3g}% of the weights" if compression is None else f"{compression:g} times smaller"
        return (DEFENDED, f"{method} (dense, adversarial)") if method == DENSE else (JOINT, f"{method}, {size}")
    structure = source.parameters.get("structure", "weights")
    words = f"{method}, {100 * row['kept']:.3g}% of the weights" + (f" ({structure})" if structure != "weights" else "")
    return PRUNED, words if goal == own else f"{words} ({goal})"


def _size(row: dict, sized: dict, written: dict) -> float | None:
    """Bits of a network of 06_prune: of its file if there is one, else counted; None if neither is known."""
    key = row["method"], row["kept"]
    if row.get("file_bytes"):
        return 8 * row["file_bytes"]
    method, _, form = row["method"].partition(" INT_")
    whole = sized.get((method, row["kept"]))
    if key in written or whole is None:
        return written.get(key)
    codes = whole["coded_bits"] * (int(form) if form else 32) / 32
    return codes + whole["index_bits"] + whole["other_bits"]


def _proved_by_noise(source: Source, rows: list[dict]) -> Iterator[dict]:
    """The share of images that noise certifies in an L2 ball, for each network of 06_prune."""
    radius = source.parameters.get("smoothing_radius")
    frame = DataFrame(source.table("by_noise"), columns=["network", "label", "predicted", "radius_l2"])
    titles = {certificates.title_of(row["method"], row["kept"]): row for row in rows}
    for name, group in frame.groupby("network"):
        if name in titles:
            kind, treatment = _treatment(source, titles[name])
            share = ((group.label == group.predicted) & (group.radius_l2 >= radius)).mean()
            where = {"images": len(group), "within": f"L2 {radius:g}", "how": "noise"}
            yield from each(source, kind, treatment, certified=share, **where)
