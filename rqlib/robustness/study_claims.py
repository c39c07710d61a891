"""What is left of the first report's claims when every test is paired by seed and corrected for their number.

The families of tests are fixed beforehand. Each is corrected as a whole (Holm); the success rate follows from the two
accuracies and is not tested. With 32 tests the smallest p must be below 0.05 / 32: ten seeds can show that, five never
can by ranks (1 / 2^5).
"""

import warnings

import numpy
import pandas
from pandas import DataFrame

from rqlib.core.vocabulary import did_you_mean
from rqlib.measures import paired_tests, significance
from rqlib.measures.significance import corrected
from rqlib.robustness.defense_study import VARIANTS
from rqlib.training.variants import LEAKY

ORIGINAL, ADVERSARIAL = "original", "adversarial"
ROBUST = "robust accuracy against original"
ADDED = "robust accuracy against adversarial"
CLEAN = "clean accuracy against original"
LEAK = "clean accuracy against original, with the leak"

ADDITIONS = ("Q+A", "A+R", "Q+A+R", "RSE")
"""Variants that add something to adversarial training, or take its place."""

LEVEL = 0.05
STARS = {0.01: "***", 0.05: "**", 0.1: "*"}
"""Corrected p below -> stars, as in the report, which did not correct."""

_TRAINED_UNDER_ATTACK = ("adversarial", "Q+A", "A+R", "Q+A+R")
CLAIMED = (
    *((ROBUST, name, "higher") for name in _TRAINED_UNDER_ATTACK),
    (ROBUST, "RSE", "higher"),
    *((ROBUST, name, "not higher") for name in ("quantized", "regularized", "Q+R")),
    *((ADDED, name, "about the same") for name in ("Q+A", "A+R", "Q+A+R")),
    (ADDED, "RSE", "somewhat lower"),
    *((CLEAN, name, "higher") for name in _TRAINED_UNDER_ATTACK),
    (CLEAN, "RSE", "not higher"),
    (CLEAN, "quantized", "a little lower"),
    *((CLEAN, name, "a little lower") for name in ("regularized", "Q+R")),
)
"""(family, variant, what the report says of it)."""


def families(table: DataFrame) -> DataFrame:
    """Paired tests of the study, with Holm's correction within each family; one row per test, one-sided (greater).

    - ``robust accuracy against original``: the eight other variants at each radius.
    - ``robust accuracy against adversarial``: Q+A, A+R, Q+A+R and RSE at each radius.
    - ``clean accuracy against original``: once for a variant that has no training radius (epsilon_255 is NaN), once
      for each radius of the others.
    - ``clean accuracy against original, with the leak``: the variant ``leaky`` alone, at each radius.

    Args:
        table: of `study`.

    Returns:
        The columns family and stars, and those of `measures.paired_tests`. A family that lacks its baseline or all of
        its variants has no rows; a warning says so.

    Raises:
        ValueError: an empty table; neither ``original`` nor ``adversarial`` is in it; a network has two rows.
    """
    if table.empty:
        raise ValueError(f"expected the table of a study of {', '.join(VARIANTS)}, got an empty one")
    present = set(table.variant)
    if not present & {ORIGINAL, ADVERSARIAL}:
        raise ValueError(did_you_mean("baseline", ORIGINAL, dict.fromkeys(table.variant)))
    unknown = sorted(present - {*VARIANTS, LEAKY})
    if unknown:
        warnings.warn(f"not tested: {', '.join(unknown)}; the families know {', '.join(VARIANTS)}", stacklevel=2)
    clean = _clean(table)
    others = [name for name in VARIANTS if name != ORIGINAL]
    families = [
        (ROBUST, table, ORIGINAL, others, "robust_accuracy"),
        (ADDED, table, ADVERSARIAL, ADDITIONS, "robust_accuracy"),
        (CLEAN, clean, ORIGINAL, others, "clean_accuracy"),
    ]
    if LEAKY in present:
        families.append((LEAK, clean, ORIGINAL, [LEAKY], "clean_accuracy"))
    parts, left_out = [], []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name, rows, baseline, variants, metric in families:
            rows = rows[rows.variant.isin([baseline, *variants])]
            if baseline in present and len(set(rows.variant)) > 1:
                found = paired_tests(rows, baseline, metric, ["epsilon_255"])
                parts.append(found.assign(family=name, stars=found.p_holm.map(stars)))
            else:
                left_out.append(name)
    if said:
        warnings.warn("; ".join(dict.fromkeys(str(one.message) for one in said)), stacklevel=2)
    if left_out:
        warnings.warn(f"no such tests, for want of networks: {'; '.join(left_out)}", stacklevel=2)
    if not parts:
        parts = [corrected(DataFrame(columns=["family", "epsilon_255", *significance.COLUMNS, "stars"]))]
    return _family_first(pandas.concat(parts, ignore_index=True))


def claims(tests: DataFrame) -> DataFrame:
    """What the report says of each variant, beside what is left of it: one row per claim.

    The columns: family, variant, claimed, tests (their number: one per radius), higher (in how many of them the
    variant is higher after correction, p_holm < 0.05), smallest and largest (mean difference), left (in words). The
    tests ask for higher alone: that two are about the same, or that one is lower, they cannot show.

    Args:
        tests: of `families`.
    """
    rows = []
    for family, variant, claimed in CLAIMED:
        found = tests[(tests.family == family) & (tests.variant == variant)]
        tested = found.dropna(subset="p_holm")
        higher = int((tested.p_holm < LEVEL).sum())
        rows.append({
            "family": family, "variant": variant, "claimed": claimed, "tests": len(tested), "higher": higher,
            "smallest": found.difference.min() if len(found) else numpy.nan,
            "largest": found.difference.max() if len(found) else numpy.nan,
            "left": _left(claimed, len(tested), higher),
        })  # fmt: skip
    return DataFrame(rows)


def leak(tests: DataFrame) -> DataFrame:
    """Is a network that is trained under attack more accurate on clean images? With the leak, and without it.

    One row per radius and variant (``adversarial``, ``leaky``): epsilon_255, variant, seeds, difference of the clean
    accuracy to ``original``, its interval low and high, p_holm within its family, and more_accurate: whether p_holm is
    below 0.05; None where there is no test.

    Args:
        tests: of `families`.
    """
    of_clean = tests.family.isin([CLEAN, LEAK]) & tests.variant.isin([ADVERSARIAL, LEAKY])
    found = tests[of_clean].sort_values(["epsilon_255", "variant"], ignore_index=True)
    more = [None if numpy.isnan(p) else bool(p < LEVEL) for p in found.p_holm]
    columns = ["epsilon_255", "variant", "seeds", "difference", "low", "high", "p_holm"]
    return found[columns].assign(more_accurate=more)


def hidden_by_noise(table: DataFrame) -> DataFrame:
    """How robust networks that draw noise seem without EOT, and are: means over their seeds, one row per radius.

    The columns: epsilon_255, variant, seeds, without_eot (accuracy where each step follows one forward pass), with_eot
    (where it follows 20 draws), hidden (the difference).

    Args:
        table: of `study`. If no network draws noise, the result has no rows.
    """
    names = {"without_eot_accuracy": "without_eot", "robust_accuracy": "with_eot"}
    rows = table.reindex(columns=[*table, *(name for name in names if name not in table)]).rename(columns=names)
    grouped = rows.dropna(subset="without_eot").groupby(["epsilon_255", "variant"])
    means = grouped[["without_eot", "with_eot"]].mean()
    return means.assign(hidden=means.without_eot - means.with_eot, seeds=grouped.seed.nunique()).reset_index()


def stars(p_holm: float) -> str:
    """The stars of a corrected p: *** below 0.01, ** below 0.05, * below 0.1, otherwise none."""
    return next((shown for level, shown in STARS.items() if p_holm < level), "")


def _clean(table: DataFrame) -> DataFrame:
    """Clean accuracies, one row per network, at the radius of its training; ``original`` also stands at each radius."""
    once = table.drop_duplicates(["variant", "seed", "trained_255"]).drop(columns="epsilon_255")
    once = once.rename(columns={"trained_255": "epsilon_255"})
    radii = once.epsilon_255.dropna().unique()
    base = once[once.variant == ORIGINAL]
    return pandas.concat([once, *(base.assign(epsilon_255=radius) for radius in radii)], ignore_index=True)


def _left(claimed: str, count: int, higher: int) -> str:
    """What is left of a claim, in words."""
    if not count:
        return "not tested"
    where = "in every test" if higher == count else f"in {higher} of {count} tests"
    if claimed == "higher":
        return f"holds {where}" if higher else "not shown"
    return f"higher {where}" if higher else "not higher in any test"


def _family_first(tests: DataFrame) -> DataFrame:
    """The same table with its family in front."""
    return tests[["family", *(name for name in tests if name != "family")]]
