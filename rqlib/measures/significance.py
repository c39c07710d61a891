"""Is one variant of a network better than another? Paired tests over seeds, corrected for their number.

The unit is the seed: two variants of one seed begin with the same weights and see the images in the same order. Radii
are no replicates: with 10 seeds at 4 radii taken for 40 pairs, 21% of tests of no effect come out below 5%.
"""

import math
import warnings
from collections.abc import Sequence

import numpy
import pandas
import scipy
from pandas import DataFrame

from rqlib.core.vocabulary import did_you_mean

CONFIDENCE = 0.95

COLUMNS = ["variant", "baseline", "metric", "seeds", "difference", "low", "high", "t", "p", "wilcoxon_p", "note"]
"""Of the tests, before they are corrected."""


def paired_tests(
    rows: DataFrame, baseline: str, metric: str, by: Sequence[str] = (), *, alternative: str = "greater"
) -> DataFrame:
    """Test every variant against a baseline, seed by seed: a paired t-test, Wilcoxon's signed ranks, Holm's correction.

    ``t = mean(d) / (std(d) / sqrt(n))`` over the differences d of n seeds. Only seeds that both have are paired; one
    warning names the others. All tests of the result are one family: for another family call this again.

    Args:
        rows: one row per variant, seed and value of ``by``, with the columns variant, seed and ``metric``. A row whose
            ``metric`` is NaN counts as missing.
        baseline: the variant that the others are tested against.
        by: columns that separate tests, such as the radius of an attack; NaN is a value like any other.
        alternative: ``greater`` asks whether the variant's metric is larger than the baseline's; or ``less``,
            ``two-sided``.

    Returns:
        One row per variant and value of ``by``: the columns of ``by``, variant, baseline, metric, seeds (how many are
        paired), difference (mean, variant minus baseline), low and high (its 95% interval), t, p, p_holm, wilcoxon_p
        (exact, with ties, too), wilcoxon_p_holm, note. Without a test p is NaN and the note says why: one seed, no
        seed in common, differences that are all equal. Such a row does not count in the correction.

    Raises:
        ValueError: a column is missing; there are no rows; no variant is the baseline; a seed has two rows.
    """
    by = list(by)
    _check(rows, baseline, [*by, "variant", "seed"], metric)
    rows = rows.dropna(subset=metric).astype({metric: float})
    found, unpaired = [], {}
    groups = rows.groupby(by, sort=True, dropna=False) if by else [((), rows)]
    for values, group in groups:
        where = dict(zip(by, values, strict=True))
        table = group.pivot(index="seed", columns="variant", values=metric)
        base = table[baseline].dropna() if baseline in table else pandas.Series(dtype=float)
        for variant in dict.fromkeys(group.variant):
            if variant == baseline:
                continue
            own = table[variant].dropna()
            if seeds := _not_common(variant, own.index, baseline, base.index):
                unpaired.setdefault(seeds, []).append(_in_words(where))
            test = _test((own - base).dropna().to_numpy(), alternative)
            found.append({**where, "variant": variant, "baseline": baseline, "metric": metric, **test})
    if unpaired:
        each = [f"{seeds} ({'; '.join(places)})" if by else seeds for seeds, places in unpaired.items()]
        warnings.warn(f"paired on common seeds only: {'; '.join(each)}", stacklevel=2)
    return corrected(DataFrame(found, columns=[*by, *COLUMNS]))


def corrected(tests: DataFrame) -> DataFrame:
    """Tests with the columns p_holm and wilcoxon_p_holm anew, all rows taken as one family."""
    for name in [name for name in ("p", "wilcoxon_p") if name in tests]:
        at = tests.columns.get_loc(name) + 1
        rest = tests.drop(columns=f"{name}_holm", errors="ignore")
        rest.insert(at, f"{name}_holm", holm(tests[name]))
        tests = rest
    return tests


def holm(p_values: Sequence[float]) -> numpy.ndarray:
    """P-values corrected for their number: ``max_{j <= i} min(1, (m - j + 1) p_(j))`` in ascending order (Holm 1979).

    The chance that any of the m tests of no effect falls below a level is then at most that level. NaN stays NaN and
    does not count.
    """
    p_values = numpy.asarray(p_values, dtype=float)
    result = numpy.full(p_values.shape, numpy.nan)
    order = numpy.argsort(p_values)[: numpy.isfinite(p_values).sum()]  # NaN comes last
    factors = numpy.arange(len(order), 0, -1)
    result[order] = numpy.maximum.accumulate(numpy.minimum(factors * p_values[order], 1.0))
    return result


def _test(differences: numpy.ndarray, alternative: str) -> dict:
    """The columns of one test, from seeds to note."""
    differences = differences.round(12)  # 0.43 - 0.40 and 0.45 - 0.42 are the same difference
    count = len(differences)
    row = {"seeds": count, "difference": differences.mean() if count else numpy.nan}
    row |= dict.fromkeys(("low", "high", "t", "p", "wilcoxon_p"), numpy.nan)
    if count < 2:
        return row | {"note": "one seed: no test" if count else "no seed in common: no test"}
    if (differences == differences[0]).all():
        return row | {"note": "the differences of all seeds are equal: no spread to test against"}
    test = scipy.stats.ttest_1samp(differences, 0.0, alternative=alternative)
    interval = scipy.stats.ttest_1samp(differences, 0.0).confidence_interval(CONFIDENCE)
    row |= {"low": interval.low, "high": interval.high, "t": test.statistic, "p": test.pvalue}
    return row | {"wilcoxon_p": _signed_ranks(differences, alternative), "note": ""}


def _signed_ranks(differences: numpy.ndarray, alternative: str) -> float:
    """Wilcoxon's exact p, over all signs of the differences; scipy needs 0.1 s for it where differences are tied."""
    differences = differences[differences != 0]
    ranks = (2 * scipy.stats.rankdata(abs(differences))).astype(int)  # doubled, because tied ranks are halves
    ways = numpy.ones(1)  # to reach each sum of positive ranks
    for rank in ranks:
        ways = numpy.pad(ways, (0, rank)) + numpy.pad(ways, (rank, 0))
    found, shares = ranks[differences > 0].sum(), ways / ways.sum()
    above, below = shares[found:].sum(), shares[: found + 1].sum()
    return {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[alternative]


def _in_words(where: dict) -> str:
    """The values of ``by`` that a test is of."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else format(value, 'g')}" for name, value in where.items()
    )


def _not_common(variant: str, own: pandas.Index, baseline: str, base: pandas.Index) -> str:
    """What to say of seeds that only one of two variants has; empty if both have the same."""
    pairs = ((variant, own.difference(base)), (baseline, base.difference(own)))
    missing = [f"seeds {', '.join(map(str, seeds))} of {name} only" for name, seeds in pairs if len(seeds)]
    return f"{variant} and {baseline}: {' and '.join(missing)}" if missing else ""


def _check(rows: DataFrame, baseline: str, keys: list[str], metric: str) -> None:
    missing = [name for name in (*keys, metric) if name not in rows]
    if missing:
        raise ValueError(f"expected the columns {', '.join((*keys, metric))}, got no {', '.join(missing)}")
    if rows.empty:
        raise ValueError(f"expected one row per variant and seed with {metric}, got an empty table")
    if baseline not in set(rows.variant):
        raise ValueError(did_you_mean("variant", baseline, dict.fromkeys(rows.variant)))
    rows = rows.dropna(subset=metric)
    twice = rows[rows.duplicated(keys)]
    if len(twice):
        which = ", ".join(f"{name} {twice.iloc[0][name]}" for name in keys)
        raise ValueError(f"expected one row per {', '.join(keys)}, got two of {which}")


def student(values, *, level: float = 0.95) -> float:
    """Half the width of Student's interval of the mean of n values, t s / sqrt(n); NaN for a single one."""
    if len(values) < 2:
        return math.nan
    return scipy.stats.t.ppf(0.5 + level / 2, len(values) - 1) * scipy.stats.sem(values)


def wilson(share, count, *, level: float = 0.95):
    """Ends (low, high) of Wilson's interval of a share of ``count`` images; numbers, or Series of equal length.

    (share + z^2 / 2n -+ z sqrt(share (1 - share) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    z = scipy.special.ndtri(0.5 + level / 2)  # the quantile of the normal distribution
    middle = share + z**2 / (2 * count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)
