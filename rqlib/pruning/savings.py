"""What pruning saves: bytes of the file, and operations and time if whole channels are removed."""

import math
import warnings
from pathlib import Path

from pandas import DataFrame
from torch import nn

from rqlib import attacks, data, measures
from rqlib.core import layers, parametrizations, runtime
from rqlib.measures import cost
from rqlib.pruning import algorithms, channels, packed
from rqlib.pruning.evaluation import Networks
from rqlib.pruning.plans import SCRATCH, Plan

_COMPARED, _TIMED = 100, 64  # images


def on_disk(networks: Networks, plan: Plan, folder: str | Path) -> DataFrame:
    """Write each pruned network as ``METHOD-KEPT.rqz`` in a folder, and compare its size with what it should be.

    Networks that were trained from ``scratch`` are left out: they have no zeros.

    Returns:
        One row per file: method, kept, dense_bytes (all weights of convolutions and linear layers as float32),
        expected_bytes (nonzero weights, the entropy of where they are, and everything else), file_bytes,
        ratio_with_index (dense / (nonzero + where), of the layers that can be pruned).

    Raises:
        AssertionError: the network that is loaded from a file has other logits.
    """
    rows, (x, y) = [], plan.images.test.take(_COMPARED)
    for (method, kept), network in networks.items():
        if method == SCRATCH:
            continue
        plain, path = parametrizations.bake(network), Path(folder) / f"{method}-{kept}.rqz"
        made = {"width": plan.width, "options": dict(plan.options), "changes": dict(plan.changes)}
        packed.save(path, plain, plan.model, plan.made_for, **made, parameters={"seed": plan.seed})
        loaded, _ = packed.load(path, expected=plan.model)
        same = measures.logits(loaded, x, y).equal(measures.logits(plain, x, y))
        assert same, f"{path}: the network that is loaded from it has other logits"
        size = cost.storage(plain)
        row = {
            "method": method,
            "kept": kept,
            "dense_bytes": _dense_bytes(plain),
            "expected_bytes": sum(size[part] for part in ("coded_bits", "index_bits", "other_bits")) // 8,
            "file_bytes": path.stat().st_size,
            "ratio_with_index": size["ratio_with_index"],
        }
        rows.append(row)
    return DataFrame(rows)


def _dense_bytes(plain: nn.Module) -> int:
    """Bytes of all weights of convolutions and linear layers as float32, also of the layers that are never pruned."""
    found = (*layers.weighted_layers(plain), *layers.other_weighted_layers(plain))
    return 4 * sum({id(layer.weight): layer.weight.numel() for _, layer in found}.values())


def filters(dense: nn.Module, plan: Plan) -> tuple[DataFrame, float]:
    """Set half of the channels to 0 by magnitude, fine-tune the rest, then really remove those channels.

    Nothing is fine-tuned if the plan has no epochs for it.

    Returns:
        One row per network (``dense``, ``half zeroed``, ``half removed``): params, nonzero, macs, bits
        (`measures.profile`), milliseconds for 64 images, clean_accuracy; and the largest difference between the
        logits of the last two in float32, as a share of the largest logit. If no channel of this network can be
        removed, a warning says why, ``dense`` is the only row, and the difference is NaN.
    """
    table = {"dense": dense, **_half(dense, plan)}
    x, y = plan.images.test
    timed = runtime.active().place(data.to_pixels(x[:_TIMED]))
    rows = {
        title: {
            **cost.totals(cost.profile(network, plan.images.spec)),
            "milliseconds": 1000 * cost.latency(network, timed),
            "clean_accuracy": measures.accuracy(network, x, y, attack=attacks.none),
        }
        for title, network in table.items()
    }
    if len(table) == 1:
        return DataFrame(rows).T, math.nan
    _, *pair = table.values()
    with runtime.exact():
        before, after = (measures.logits(network, x[:_TIMED], y[:_TIMED]) for network in pair)
    return DataFrame(rows).T, ((before - after).abs().max() / before.abs().max()).item()


def _half(dense: nn.Module, plan: Plan) -> Networks:
    """The network with half of its channels set to 0, and without them; nothing if that is not possible."""
    choosing, finetuning = plan.phase("prune", "filters"), plan.finetuning("filters")
    try:
        pruned = algorithms.run("lwm", dense, 0.5, choosing, finetuning, structure="filters")
        zeroed = parametrizations.bake(pruned)
        return {"half zeroed": zeroed, "half removed": channels.remove(zeroed, choosing.image)}
    except ValueError as error:
        warnings.warn(f"filters are left out: {error}", stacklevel=3)
        return {}
