"""What compressed networks take, with everything that is needed to compute with them, in figures and in files."""

from pathlib import Path

import pandas
import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import measures
from rqlib.measures import cost
from rqlib.pruning import factors, packed
from rqlib.pruning.evaluation import Networks
from rqlib.pruning.plans import Plan

_COMPARED = 100  # images


@torch.no_grad()
def sizes(networks: Networks, plan: Plan, folder: str | Path) -> DataFrame:
    """Write the networks of `joint` as files ``RIVAL-RATIO.rqz`` into a folder, and say what each of them takes.

    Returns:
        One row per network: rival, kept (the ratio that was asked for), weights, nonzero, most_values (the largest
        number of distinct nonzero values of a tensor); dense_bits, coded_bits, index_bits, ratio (without the index, as
        the paper counts), ratio_with_index, other_bits (biases and BatchNorm), all of `measures.storage`;
        codebook_bits (part of coded_bits); expected_bytes of all these, file_bytes, and file_ratio (dense weights and
        others / file).

    Raises:
        AssertionError: the network that is loaded from a file has other logits.
    """
    rows, (x, y) = [], plan.images.test.take(_COMPARED)
    for (rival, ratio), network in networks.items():
        path, size = Path(folder) / f"{rival}-{ratio}.rqz", cost.storage(network)
        _write(path, network, plan)
        loaded, _ = packed.load(path, expected=plan.model)
        same = measures.logits(loaded, x, y).equal(measures.logits(network, x, y))
        assert same, f"{path}: the network that is loaded from it has other logits"
        stored, found = factors.tensors(network).values(), path.stat().st_size
        row = {"rival": rival, "kept": ratio, "weights": cost.weight_count(network)}
        row["nonzero"] = sum(int(one.count_nonzero()) for one in stored)
        row["most_values"] = max(map(_distinct, stored))
        row |= size | {"codebook_bits": sum(map(_codebook_bits, stored))}
        row["expected_bytes"] = sum(size[part] for part in ("coded_bits", "index_bits", "other_bits")) // 8
        row |= {"file_bytes": found, "file_ratio": (size["dense_bits"] + size["other_bits"]) / 8 / found}
        rows.append(row)
    return DataFrame(rows)


def factor_shares(networks: Networks) -> DataFrame:
    """Where the nonzeros of the networks of `joint` are (`factors.shares`): one row per network and factor.

    Columns: rival, kept, factor (left, right, rest, or weight where it is not factorized), nonzero, share.
    """
    tables = [
        factors.shares(network).groupby("factor", sort=False)[["nonzero", "share"]].sum().assign(rival=rival, kept=kept)
        for (rival, kept), network in networks.items()
    ]
    return pandas.concat(tables).reset_index()[["rival", "kept", "factor", "nonzero", "share"]]


def _write(path: Path, network: nn.Module, plan: Plan) -> None:
    """Write a network with what is needed to build it again."""
    ranks = factors.ranks_of(network)
    changes = dict(plan.changes) | ({"factorized": ranks} if ranks else {})
    made = {"width": plan.width, "options": dict(plan.options), "changes": changes}
    packed.save(path, network, plan.model, plan.made_for, **made, parameters={"seed": plan.seed})


def _distinct(tensor: Tensor) -> int:
    """Number of distinct values that are not 0."""
    return int(tensor.unique().count_nonzero())


def _codebook_bits(tensor: Tensor) -> int:
    """Bits of the codebook of a tensor's nonzero values; 0 if they are cheaper as they are."""
    nonzero, distinct = int(tensor.count_nonzero()), _distinct(tensor)
    return 32 * distinct if cost.with_codebook(nonzero, distinct, distinct) < 32 * nonzero else 0
