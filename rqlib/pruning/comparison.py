"""Rivals side by side at equal true size: what each takes and withstands, and what is left of the paper's claims."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pandas import DataFrame
from torch import nn

from rqlib.measures import paired_tests
from rqlib.pruning.evaluation import Networks
from rqlib.pruning.plans import Plan
from rqlib.pruning.rivals import DENSE, kept_at
from rqlib.pruning.true_sizes import sizes
from rqlib.pruning.under_attacks import under_attacks

LEVEL = 0.05
SMALL = 0.02
"""A loss of accuracy that counts as little: two points."""
OURS, SCORE = "ATMC-8", "robust_accuracy"
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"


def compare(
    networks: Networks,
    dense: nn.Module,
    plan: Plan,
    folder: str | Path,
    *,
    ratios: Sequence[float] = (),
    compressions: Sequence[float] = (),
    gamma: float = 20.0,
    steps: int = 7,
) -> DataFrame:
    """Sizes and accuracies of the networks of `rivals.joint`, one row per network.

    Args:
        networks, dense, plan, ratios, compressions: as `joint` returned and was given them.
        folder: where the network files are written.
        gamma, steps: of WRM (`under_attacks`).

    Returns:
        The columns method (the rival), kept, compression (what was asked for; NaN for a network that was asked for by
        its ratio), images, model, width, and those of `true_sizes.sizes` and `under_attacks`.
    """
    keys = ["rival", "kept"]
    table = sizes(networks, plan, folder).merge(under_attacks(networks, plan, gamma=gamma, steps=steps), on=keys)
    asked = kept_at(dense, [*dict.fromkeys(rival for rival, _ in networks)], compressions)
    asked = asked[~asked.kept.isin(ratios)].drop_duplicates(["rival", "kept"])
    table = table.merge(asked, how="left", on=keys).assign(**plan.origin).drop(columns="pretrained_for")
    first = ["method", "kept", "compression", "images", "model", "width"]
    table = table.rename(columns={"rival": "method"})
    return table[[*first, *(name for name in table if name not in first)]]


def claims(rows: DataFrame) -> DataFrame:
    """What the paper claims of the rivals, and whether it holds here: one row per claim and size.

    Each claim is that one robust accuracy exceeds another by more than a bound, paired by seed:

    - ATMC-8 is the most robust at a compression: it exceeds the strongest of the other rivals. Because that one was
      chosen, the claim holds only if paired one-sided t-tests against all of them, corrected by Holm over rivals and
      compressions, are below `LEVEL`; and it fails only if one of the opposite tests is, corrected in the same way.
      Where it fails, ``compared`` names the rival whose opposite test has the smallest p, instead of the strongest one.
    - Eight bits cost ATMC less than `SMALL` at a ratio of nonzeros: ATMC-8 exceeds ATMC-32 less `SMALL`.
    - Natural pruning loses robustness at a compression: the dense adversarial network exceeds NAP.
    - ATMC-8 is as robust as the dense network at a compression: it exceeds that network less `SMALL`.

    Args:
        rows: of `compare`, of one data set and one or more seeds, with the column seed.

    Returns:
        The columns claim, at, compared, seeds, difference (mean over seeds), low and high (its 95% interval, NaN for
        one seed), verdict: holds | does not hold | cannot be told.
    """
    rows = rows.rename(columns={"method": "variant"})
    found = [*_most_robust(rows)]
    for kept in sorted(rows[rows.compression.isna() & (rows.variant != DENSE)].kept.unique(), reverse=True):
        same = rows[rows.compression.isna() & (rows.kept == kept)]
        found += _exceeds("eight bits cost little", f"ratio {kept:g}", same, OURS, "ATMC-32", -SMALL)
    for compression in sorted(rows.compression.dropna().unique()):
        same, at = rows[(rows.compression == compression) | (rows.variant == DENSE)], f"compression {compression:g}"
        found += _exceeds("natural pruning loses robustness", at, same, DENSE, "NAP", 0.0)
        found += _exceeds(f"{OURS} is as robust as dense", at, same, OURS, DENSE, -SMALL)
    return DataFrame(found, columns=["claim", "at", "compared", "seeds", "difference", "low", "high", "verdict"])


def _most_robust(rows: DataFrame) -> Iterator[tuple]:
    """Rows of `claims` on the strongest of the other rivals, or one that is better, at each compression of ATMC-8."""
    sized = rows[rows.compression.isin(rows.compression[rows.variant == OURS].dropna())]
    if sized.variant.nunique() < 2:
        return
    lower, higher = (
        paired_tests(sized, OURS, SCORE, ["compression"], alternative=side) for side in ("less", "greater")
    )
    for compression, group in lower.groupby("compression"):
        better = higher[(higher.compression == compression) & (higher.p_holm < LEVEL)]
        rival, verdict = group.loc[group.difference.idxmax()], UNKNOWN
        if (group.p_holm < LEVEL).all():
            verdict = HOLDS
        elif len(better):
            rival, verdict = better.sort_values(["p_holm", "p"]).iloc[0], FAILS
        compared, difference = f"{OURS} - {rival.variant}", (-rival.difference, -rival.high, -rival.low)
        yield ("most robust", f"compression {compression:g}", compared, rival.seeds, *difference, verdict)


def _exceeds(claim: str, at: str, rows: DataFrame, one: str, other: str, bound: float) -> list[tuple]:
    """The row of `claims` on ``one - other > bound``; none if a rival is missing."""
    rows = rows[rows.variant.isin([one, other])]
    if rows.variant.nunique() < 2:
        return []
    test = paired_tests(rows, other, SCORE).iloc[0]
    verdict = _verdict(test.low, test.high, bound)
    return [(claim, at, f"{one} - {other}", test.seeds, test.difference, test.low, test.high, verdict)]


def _verdict(low: float, high: float, bound: float) -> str:
    """Whether a difference with the interval [low, high] exceeds a bound."""
    return HOLDS if low > bound else FAILS if high < bound else UNKNOWN
