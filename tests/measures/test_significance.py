"""Paired tests: hand-computed figures, scipy, and what is said where no test is possible."""

import math
import re
import warnings

import numpy
import pandas
import pytest
from scipy import stats

from rqlib.measures import holm, paired_tests, student, wilson

BASE = (0.40, 0.42, 0.38, 0.41, 0.39)
A = (0.43, 0.44, 0.42, 0.43, 0.44)
B = (0.41, 0.41, 0.39, 0.43, 0.40)


def table(**variants) -> pandas.DataFrame:
    """One row per variant and seed; a dict gives the seeds, a tuple counts them from 0."""
    return pandas.DataFrame([
        {"variant": name, "seed": seed, "accuracy": value}
        for name, values in variants.items()
        for seed, value in (values.items() if isinstance(values, dict) else enumerate(values))
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        (
            (0.0001, 0.02, 0.02, 0.3, 0.9, 0.011, 0.049, 0.6),
            (0.0008, 0.12, 0.12, 0.9, 1, 0.077, 0.196, 1),
        ),
        ((0.01, numpy.nan, 0.04, 0.03, 0.005, numpy.nan), (0.03, numpy.nan, 0.06, 0.06, 0.02, numpy.nan)),
        ((numpy.nan,), (numpy.nan,)),
        ((), ()),
    ],
)
def test_holm(p_values, expected):
    numpy.testing.assert_allclose(holm(p_values), expected, rtol=1e-12)


def test_the_hand_computed_tests():
    found = paired_tests(table(base=BASE, A=A, B=B), "base", "accuracy").set_index("variant")
    measured = found[["difference", "t", "p", "low", "high"]]
    numpy.testing.assert_allclose(measured.loc["A"], (0.032, 5.487955, 0.00268522, 0.015811, 0.048189), rtol=1e-4)
    numpy.testing.assert_allclose(measured.loc["B"], (0.008, 1.632993, 0.08890390, -0.005602, 0.021602), rtol=1e-4)
    assert found.wilcoxon_p["A"] == 0.03125
    assert found.p_holm.tolist() == pytest.approx([0.00537044, 0.08890390], rel=1e-6)
    assert found.wilcoxon_p_holm["A"] == 0.0625
    assert found.seeds.tolist() == [5, 5]


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("values", [(0.31, -0.12, 0.23, 0.44, 0.05, -0.06), (0.3, -0.1, 0.3, 0.0, 0.1, 0.0, 0.2)])
def test_wilcoxon_is_scipys_over_all_signs(alternative, values):
    """Without and with ties and zeros."""
    rows = table(base=[0.0] * len(values), A=values)
    found = paired_tests(rows, "base", "accuracy", alternative=alternative).wilcoxon_p[0]
    all_signs = stats.PermutationMethod(n_resamples=2**7)
    expected = stats.wilcoxon(values, alternative=alternative, method=all_signs)
    assert found == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_the_t_test_is_scipys(alternative):
    values = numpy.random.default_rng(0).normal(size=(2, 10))
    found = paired_tests(table(base=values[0], A=values[1]), "base", "accuracy", alternative=alternative).iloc[0]
    expected = stats.ttest_rel(values[1], values[0], alternative=alternative)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)


def test_radii_are_tests_of_their_own_and_one_family():
    parts = [table(base=BASE, A=A).assign(epsilon_255=4), table(base=BASE, A=B).assign(epsilon_255=8)]
    unknown = table(base=BASE, A=A).assign(epsilon_255=numpy.nan)
    found = paired_tests(pandas.concat([*parts, unknown]), "base", "accuracy", ["epsilon_255"])
    assert found.epsilon_255.tolist()[:2] == [4, 8]
    assert found.p.tolist() == pytest.approx([0.00268522, 0.08890390, 0.00268522], rel=1e-5)
    assert found.p_holm.tolist() == pytest.approx(holm(found.p).tolist())
    assert found.p_holm[0] == pytest.approx(3 * found.p[0])


def test_only_common_seeds_are_paired_and_the_others_are_named():
    """In one warning; a seed whose value is NaN is a missing one."""
    base = dict(enumerate(BASE)) | {7: 0.9, 8: numpy.nan}
    with pytest.warns(UserWarning, match="common seeds only") as caught:
        found = paired_tests(table(base=base, A=dict(enumerate(A)) | {9: 0.1}, B=B), "base", "accuracy")
    (warning,) = caught
    assert "A and base: seeds 9 of A only and seeds 7 of base only; B and base: seeds 7 of base" in str(warning.message)
    assert found.p.tolist() == pytest.approx([0.00268522, 0.08890390], rel=1e-5)


@pytest.mark.parametrize(
    ("variants", "difference", "note"),
    [
        ({"base": (0.4,), "A": (0.5,)}, 0.1, "one seed: no test"),
        ({"base": {0: 0.4}, "A": {1: 0.5}}, numpy.nan, "no seed in common: no test"),
        ({"base": BASE, "A": BASE}, 0.0, "differences of all seeds are equal"),
        ({"base": BASE, "A": [value + 0.1 for value in BASE]}, 0.1, "differences of all seeds are equal"),
    ],
)
@pytest.mark.filterwarnings("ignore:paired on common seeds only")
def test_where_no_test_is_possible_the_note_says_so(variants, difference, note):
    found = paired_tests(table(**variants, B=variants["base"]), "base", "accuracy").iloc[0]
    numpy.testing.assert_allclose(found.difference, difference, atol=1e-12)
    assert note in found.note
    assert found[["low", "high", "t", "p", "p_holm", "wilcoxon_p", "wilcoxon_p_holm"]].isna().all()


def test_a_test_that_is_not_possible_does_not_count_in_the_correction():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_tests(table(base=BASE, A=A, same=BASE, B=B), "base", "accuracy").set_index("variant")
    assert found.p_holm["A"] == pytest.approx(2 * found.p["A"])


@pytest.mark.parametrize(
    ("rows", "baseline", "words"),
    [
        (table(base=BASE)[[]], "base", "expected the columns variant, seed, accuracy, got no variant, seed, accuracy"),
        (table(base=BASE)[:0], "base", "got an empty table"),
        (table(base=BASE, A=A), "bass", "unknown variant 'bass' (did you mean 'base'?)"),
        (pandas.concat([table(base=BASE)] * 2), "base", "one row per variant, seed, got two of variant base, seed 0"),
    ],
)
def test_errors(rows, baseline, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        paired_tests(rows, baseline, "accuracy")


def test_tests_are_separated_by_text_too_and_unequal_seeds_are_named_with_it():
    rows = table(base=BASE, A=dict(list(enumerate(A))[1:])).assign(attack="pgd", radius=8.0)
    with pytest.warns(UserWarning, match=r"seeds 0 of base only \(attack pgd, radius 8\)"):
        found = paired_tests(rows, "base", "accuracy", ["attack", "radius"])
    assert found.seeds.tolist() == [4]


def test_a_second_row_without_a_value_is_a_missing_one():
    rows = pandas.concat([table(base=BASE, A=A), table(A=(numpy.nan,))])
    assert paired_tests(rows, "base", "accuracy").p[0] == pytest.approx(0.00268522, rel=1e-5)


@pytest.mark.parametrize("rows", [table(base=BASE), table(base=BASE, A=[numpy.nan] * 5)])
def test_with_nothing_to_test_the_table_is_empty_and_has_its_columns(rows):
    found = paired_tests(rows, "base", "accuracy")
    assert found.empty
    assert {"variant", "p", "p_holm", "wilcoxon_p_holm", "note"} <= set(found)


def test_truth_values_and_objects_are_numbers():
    rows = table(base=(True, False, True, False), A=(True, True, True, False))
    assert paired_tests(rows, "base", "accuracy").difference[0] == 0.25
    assert paired_tests(rows.astype({"accuracy": object}), "base", "accuracy").difference[0] == 0.25


def test_wilson_is_scipys_interval_and_takes_whole_columns():
    shares, counts = pandas.Series([0.0, 0.3, 1.0]), pandas.Series([10, 50, 200])
    low, high = wilson(shares, counts)
    for row, (share, count) in enumerate(zip(shares, counts, strict=True)):
        expected = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
        assert (low[row], high[row]) == pytest.approx(tuple(expected), abs=1e-12)


def test_student_is_scipys_interval_of_the_mean():
    values = [0.7, 0.72, 0.69, 0.74]
    low, high = stats.t.interval(0.9, 3, numpy.mean(values), stats.sem(values))
    assert numpy.mean(values) + student(values, level=0.9) == pytest.approx(high)
    assert numpy.mean(values) - student(values, level=0.9) == pytest.approx(low)
    assert math.isnan(student([0.7]))
