"""Formats that differ from layer to layer: divide a budget of bits among the layers, and score the result."""

from collections.abc import Mapping

import pandas
from torch import Tensor, nn

from rqlib import measures
from rqlib.core import layers, runtime
from rqlib.quantization import post_training
from rqlib.quantization.formats import Format, parse
from rqlib.quantization.post_training import Formats


def allocate(sensitivity: pandas.DataFrame, budget_bits: float, *, error: str = "logit_error") -> dict[str, str]:
    """A format for each layer, such that all weights together keep a budget of bits and errors stay small.

    Every layer starts in its most exact format. As long as the budget is exceeded, one layer takes a smaller format:
    the step that adds the least error for each bit that it saves. The error of the network is taken to be the sum of
    the errors of its layers.

    Args:
        sensitivity: the rows of ``quantization.sweep(..., per_layer=True)``.
        budget_bits: of the weights of all layers together; a ValueError if even the smallest formats exceed it.
        error: the column to be kept small.

    Returns:
        Layer -> name of a format, as `quantization.ptq` takes it.
    """
    candidates = {layer: rows.to_dict("records") for layer, rows in sensitivity.groupby("layer", sort=False)}
    least = sum(min(row["coded_bits"] for row in rows) for rows in candidates.values())
    if least > budget_bits:
        raise ValueError(f"a budget of {budget_bits:.0f} bits cannot be kept: the smallest formats take {least:.0f}")

    def error_per_bit(now: dict, then: dict) -> float:
        return (then[error] - now[error]) / (now["coded_bits"] - then["coded_bits"])

    chosen = {layer: min(rows, key=lambda row: (row[error], row["coded_bits"])) for layer, rows in candidates.items()}
    while sum(row["coded_bits"] for row in chosen.values()) > budget_bits:
        steps = ((layer, row) for layer, rows in candidates.items() for row in rows)
        smaller = [(layer, row) for layer, row in steps if row["coded_bits"] < chosen[layer]["coded_bits"]]
        layer, row = min(smaller, key=lambda step: error_per_bit(chosen[step[0]], step[1]))
        chosen[layer] = row
    return {layer: row["format"] for layer, row in chosen.items()}


def score_mixes(
    model: nn.Module,
    mixes: Mapping[str, Formats],
    calibration_images: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    activations: Format | str = "INT_8",
    granularity: str = "tensor",
    ranges: str = "mse",
    nonnegative: str = "unsigned",
) -> pandas.DataFrame:
    """The accuracy and size of a network in several mixes of formats, in float32: one row per mix.

    Columns: weights (the title), accuracy, bits_per_weight (the mean), kib (of all weights, without scales).

    Args:
        mixes: a title -> the formats of the weights: layer -> format as `allocate` gives it, or one format for all.
        images, labels: what is scored, uint8 (N, C, H, W) and int64 (N,).
        activations: the format of all signals.
        granularity, ranges, nonnegative: as `quantization.ptq` takes them.
    """
    options = {
        "activations": activations, "granularity": granularity, "ranges": ranges, "nonnegative": nonnegative,
    }  # fmt: skip
    rows = []
    with runtime.exact():
        for title, weights in mixes.items():
            quantized = post_training.ptq(model, weights, calibration_images, **options)
            accuracy, bits = measures.accuracy(quantized, images, labels), _bits(model, weights)
            rows.append({"weights": title, "accuracy": accuracy, **bits})
    return pandas.DataFrame(rows)


def _bits(model: nn.Module, weights: Formats) -> dict[str, float]:
    """The mean bits of a weight in a mix of formats, and the size of all in KiB; weights without a format are float."""
    counts = {name: layer.weight.numel() for name, layer in layers.weighted_layers(model)}
    each = weights if isinstance(weights, Mapping) else dict.fromkeys(counts, weights)
    bits = sum(count * (parse(each[name]).bits if name in each else 32) for name, count in counts.items())
    return {"bits_per_weight": bits / sum(counts.values()), "kib": bits / 8 / 1024}
