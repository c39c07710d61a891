"""One function per notebook, except 06_prune (`pruned_runs`): (a run, all runs by their folder) -> rows of `each`."""

from collections.abc import Iterator

import numpy

from rqlib.prediction.published import FLOAT as FP32
from rqlib.workbook.overview.kinds import FLOAT, FORMAT, MIX, UNSEEN, ball, each, or_nan, proved
from rqlib.workbook.overview.networks import Source, trained


def training(source: Source, by_run: dict) -> Iterator[dict]:
    """01_train: accuracy, size and operations of the float network, for each of its seeds."""
    for row in source.table():
        figures = {"clean": row.get("test_accuracy"), "bits": row.get("bits"), "macs": row.get("macs")}
        for found in each(source, FLOAT, FLOAT, images=source.images(), **figures):
            yield found | {"seed": (row.get("seed", 0), None)}


def quantization(source: Source, by_run: dict) -> Iterator[dict]:
    """02_quantize: accuracy and size in every format, repaired, and in a mix of formats."""
    rows, values = source.table(), source.parameters
    images, setting = source.images(values.get("test_images")), _setting(values)
    names = {row["format"] for row in rows}
    sizes = {row["format"]: row["coded_bits"] + _rest(source, _weights(row)) for row in rows}
    whole = rows[0].get("float_accuracy")
    yield from each(source, FLOAT, FLOAT, images=images, clean=whole)
    scored = {"images": images, "float_clean": whole}
    for row in rows:
        if row.get("duplicate_of") not in names:
            size = sizes[row["format"]]
            yield from each(source, FORMAT, row["format"] + setting, clean=row["accuracy"], bits=size, **scored)
    name = values.get("repair_format")
    for row in source.table("repaired"):
        if row["repairs"] != "none":
            title = f"{name}{setting}, with {row['repairs'].replace('_', ' ')}"
            yield from each(source, FORMAT, title, clean=row["accuracy"], bits=sizes.get(name), **scored)
    budget, accuracy = values.get("budget_bits"), source.record["summary"].get("mix_accuracy")
    if budget and accuracy is not None:
        size = budget * _weights(rows[0]) + _rest(source, _weights(rows[0]))
        title = f"mix of formats, {budget:g} bits per weight{setting}"
        yield from each(source, MIX, title, clean=accuracy, bits=size, **scored)


def prediction(source: Source, by_run: dict) -> Iterator[dict]:
    """03_fit: what was predicted of each format of a network, and of those that were left out, by the others alone."""
    accuracy = source.trained.get("test_accuracy")
    for row in source.table("forecast") if accuracy is not None else []:
        yield from _prediction(source, FORMAT, row["format"] + _setting(source.table()[0]), row, accuracy)
    for row in source.table("left_out"):
        about = by_run.get(row.get("run"))
        if about and about.network and row.get("float_accuracy"):
            unseen = about.record["notebook"] == "04_generator"
            name = _without_data(row["format"]) if unseen else row["format"] + _setting(about.parameters)
            yield from _prediction(about, UNSEEN if unseen else FORMAT, name, row, row["float_accuracy"])


def generation(source: Source, by_run: dict) -> Iterator[dict]:
    """04_generator: formats chosen without data, predicted, measured, and attacked."""
    values, rows = source.parameters, source.table()
    within = ball(values["epsilon_255"])
    few = source.images(values.get("pseudo_images"), values.get("robust_images"))
    float_accuracy = next((row["float_accuracy"] for row in rows if row.get("float_accuracy")), None)
    scored = {"images": source.images(values.get("pseudo_images")), "float_clean": float_accuracy}
    for row in rows:
        robust = [
            row[name] for name in row if name.startswith("test_") and name != "test_clean" and row[name] is not None
        ]
        figures = {"images": few, "within": within, "how": "PGD", "robust": min(robust, default=None)}
        if row["format"] == FP32:
            yield from each(source, FLOAT, FLOAT, **figures)
            continue
        if row.get("duplicate_of") is None:
            name = _without_data(row["format"])
            yield from each(source, UNSEEN, name, **figures)
            size = row["coded_bits"] + _rest(source, _weights(row)) if row.get("coded_bits") else None
            yield from each(source, UNSEEN, name, clean=row.get("accuracy"), bits=size, **scored)
    unlike = {row["format"] for row in rows if row.get("duplicate_of") is None}
    for row in source.table("forecast"):
        if float_accuracy and row["format"] in unlike:
            yield from _prediction(source, UNSEEN, _without_data(row["format"]), row, float_accuracy)


def attacks(source: Source, by_run: dict) -> Iterator[dict]:
    """05_robust: what withstands every attack, in float and quantized; what is proved; the study of defenses."""
    values, rows = source.parameters, source.table()
    within = ball(values["epsilon_255"], values.get("norm", "Linf"))
    for row, metric in [(row, "clean") for row in rows if row["attack"] == "none"] + [(rows[-1], "robust")]:
        known = {"low": row["low"], "high": row["high"], "images": source.images(values.get("test_images"))}
        for found in each(source, FLOAT, FLOAT, within=within, how=row["attack"], **{metric: row["accuracy"]}):
            yield found | known
    few = source.images(values.get("test_images"), values.get("quantized_images"))
    quantized = source.table("quantized")
    whole = next((row for row in quantized if row["format"] == FP32), {})
    for row in quantized:
        kind, name = (FLOAT, FLOAT) if row["format"] == FP32 else (FORMAT, row["format"])
        figures = {"clean": row["clean"], "robust": row["minimum"]}
        if kind == FORMAT:
            figures |= {"float_clean": whole.get("clean"), "float_robust": whole.get("minimum")}
        yield from each(source, kind, name, images=few, within=within, how="three attacks", **figures)
    for row in source.table("proved"):
        yield from proved(source, FLOAT, FLOAT, row, source.images(values.get("certified_images")))
    for row in source.table("study"):
        network = source.network._replace(training=trained(row["variant"], or_nan(row["trained_255"])))
        figures = {"clean": row["clean_accuracy"], "robust": row["robust_accuracy"]}
        where = {"within": ball(row["epsilon_255"]), "how": "PGD of two losses"}
        for found in each(source, FLOAT, FLOAT, images=source.images(values.get("test_images")), **where, **figures):
            yield found | {"network": network, "seed": (row["seed"], None)}


# Parts that several notebooks share.


def _setting(values: dict) -> str:
    """How a run quantized, where that is not the usual way: ``, one scale per channel``."""
    parts = ["one scale per channel"] if values.get("granularity", "tensor") != "tensor" else []
    parts += [f"ranges by {values['ranges']}"] if values.get("ranges", "mse") != "mse" else []
    parts += {"signed": ["signed codes"], "zero_point": ["zero points"]}.get(values.get("nonnegative"), [])
    parts += ["rounded biases"] if values.get("bias", "float") != "float" else []
    return "".join(f", {part}" for part in parts)


def _without_data(name: str) -> str:
    return f"{name} without data"


def _weights(row: dict) -> float:
    """The number of weights, from the size of a row in a format."""
    return row["coded_bits"] / row["bits"]


def _rest(source: Source, weights: float) -> float:
    """Bits of what a format does not touch, such as biases; 0 if the float network's size is not known."""
    return max(0.0, (source.trained.get("bits") or 0) - 32 * weights)


def _prediction(source: Source, kind: str, name: str, row: dict, accuracy: float) -> Iterator[dict]:
    """The accuracy that a predicted loss, a share of the float accuracy, leaves."""
    losses = [or_nan(row.get(name)) for name in ("predicted", "upper", "lower")]
    value, low, high = (float(share) for share in numpy.clip([accuracy * (1 - loss) for loss in losses], 0, 1))
    for found in each(source, kind, name, predicted=value):
        yield found | {"low": low, "high": high}
