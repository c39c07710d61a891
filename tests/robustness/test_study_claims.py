"""The families of tests of the study, and what is left of the report's claims."""

import re

import numpy
import pandas
import pytest

from rqlib import measures, robustness
from rqlib.robustness import VARIANTS, study_claims
from rqlib.training.variants import LEAKY
from tests import made_up_study
from tests.made_up_study import RADII, table

NINE = table(variants=VARIANTS)


@pytest.fixture(scope="module")
def tests():
    return robustness.families(table())


def test_the_families_are_those_of_the_plan(tests):
    assert tests.groupby("family").size().to_dict() == {
        study_claims.ROBUST: 32,
        study_claims.ADDED: 16,
        study_claims.CLEAN: 4 + 4 * 4,
        study_claims.LEAK: 4,
    }
    assert set(robustness.families(NINE).family) == {study_claims.ROBUST, study_claims.ADDED, study_claims.CLEAN}
    assert set(tests[tests.family == study_claims.ADDED].variant) == {"Q+A", "A+R", "Q+A+R", "RSE"}
    assert LEAKY not in set(tests[tests.family != study_claims.LEAK].variant)
    assert len(VARIANTS) == 9


def test_each_family_is_corrected_as_a_whole(tests):
    for _, family in tests.groupby("family"):
        numpy.testing.assert_array_equal(family.p_holm, measures.holm(family.p))
        numpy.testing.assert_array_equal(family.wilcoxon_p_holm, measures.holm(family.wilcoxon_p))
    robust = tests[tests.family == study_claims.ROBUST]
    assert robust.p_holm.min() == pytest.approx(32 * robust.p.min())
    assert robust.wilcoxon_p_holm.min() == pytest.approx(32 / 1024), "ten seeds suffice, with ranks too"


def test_a_test_compares_seed_with_seed(tests):
    found = tests[(tests.family == study_claims.ADDED) & (tests.variant == "RSE") & (tests.epsilon_255 == 8)].iloc[0]
    rows = table()[lambda rows: rows.epsilon_255 == 8].set_index(["variant", "seed"]).robust_accuracy
    expected = (rows["RSE"] - rows["adversarial"]).mean()
    assert found.difference == pytest.approx(expected)
    assert (found.seeds, found.baseline, found.metric) == (10, "adversarial", "robust_accuracy")


def test_clean_accuracy_is_tested_once_for_networks_without_a_radius(tests):
    clean = tests[tests.family == study_claims.CLEAN]
    once = clean[clean.epsilon_255.isna()]
    assert set(once.variant) == {"quantized", "regularized", "Q+R", "RSE"}
    assert set(clean.dropna(subset="epsilon_255").variant) == {"adversarial", "Q+A", "A+R", "Q+A+R"}
    assert (clean.seeds == 10).all()


def test_claims_stand_beside_what_is_left(tests):
    claims = robustness.claims(tests).set_index(["family", "variant"])
    robust = claims.loc[study_claims.ROBUST]
    assert robust.claimed["adversarial"] == "higher"
    assert robust.left["adversarial"] == "holds in every test"
    assert robust.left["quantized"] == "not higher in any test"
    clean = claims.loc[(study_claims.CLEAN, "adversarial")]
    assert (clean.claimed, clean.tests, clean.higher, clean.left) == ("higher", 4, 0, "not shown")
    assert clean.smallest <= clean.largest < 0
    assert len(claims) == 8 + 4 + 8
    few = robustness.claims(robustness.families(table(variants=("original", "adversarial", "Q+A"))))
    assert "not tested" in set(few.left)
    some = tests.assign(p_holm=[0.5] * len(tests)).copy()
    some.loc[some[(some.variant == "RSE") & (some.family == study_claims.ROBUST)].index[0], "p_holm"] = 0.01
    some.loc[some[(some.variant == "Q+R") & (some.family == study_claims.ROBUST)].index[0], "p_holm"] = 0.01
    left = robustness.claims(some).set_index(["family", "variant"]).left[study_claims.ROBUST]
    assert left["RSE"] == "holds in 1 of 4 tests"
    assert left["Q+R"] == "higher in 1 of 4 tests"


def test_the_gain_on_clean_images_comes_with_the_leak(tests):
    found = robustness.leak(tests)
    assert found.variant.tolist() == ["adversarial", LEAKY] * 4
    assert found.more_accurate.tolist() == [False, True] * 4
    assert found.epsilon_255.tolist() == [radius for radius in RADII for _ in range(2)]
    without = robustness.leak(robustness.families(NINE))
    assert set(without.variant) == {"adversarial"}


def test_what_noise_hides_is_the_difference_of_two_attacks():
    rows = NINE.assign(without_eot_accuracy=(NINE.robust_accuracy + 0.1).where(NINE.variant == "RSE"))
    found = robustness.hidden_by_noise(rows).set_index("epsilon_255")
    assert found.hidden.tolist() == pytest.approx([0.1] * 4)
    own = rows[(rows.variant == "RSE") & (rows.epsilon_255 == 8)]
    assert found.with_eot[8.0] == pytest.approx(own.robust_accuracy.mean())
    assert set(found.seeds) == {10}
    assert robustness.hidden_by_noise(NINE).empty


@pytest.mark.parametrize(("p", "shown"), [(0.0099, "***"), (0.01, "**"), (0.06, "*"), (0.1, ""), (numpy.nan, "")])
def test_stars(p, shown):
    assert study_claims.stars(p) == shown


def test_one_seed_is_not_tested_and_says_so():
    found = robustness.families(table(seeds=1))
    assert found.p_holm.isna().all()
    assert set(found.note) == {"one seed: no test"}
    assert set(robustness.claims(found).left) == {"not tested"}
    assert set(robustness.leak(found).more_accurate) == {None}


def test_unequal_seeds_are_named_and_common_ones_paired():
    rows = NINE[~((NINE.variant == "RSE") & (NINE.seed == 3))]
    with pytest.warns(UserWarning, match=r"RSE and original: seeds 3 of original only \(epsilon_255 4; ") as caught:
        found = robustness.families(rows)
    assert len(caught) == 1
    assert set(found[found.variant == "RSE"].seeds) == {9}
    assert set(found[found.variant != "RSE"].seeds) == {10}


def test_a_variant_that_no_family_knows_is_named():
    other = NINE[NINE.variant == "RSE"].assign(variant="dropout")
    with pytest.warns(UserWarning, match="not tested: dropout; the families know original, adversarial"):
        found = robustness.families(pandas.concat([NINE, other]))
    assert len(found) == 68


def test_a_family_without_networks_is_named():
    with pytest.warns(UserWarning, match=f"for want of networks: {study_claims.ADDED}"):
        robustness.families(table(variants=("original", "quantized")))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (NINE[:0], "expected the table of a study of original, adversarial"),
        (NINE[NINE.variant == "RSE"], "unknown baseline 'original'"),
        (pandas.concat([NINE, NINE[:1]]), "got two of epsilon_255 4.0, variant original, seed 0"),
    ],
)
def test_errors(rows, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        robustness.families(rows)


def test_made_up_figures_are_as_in_a_study():
    assert len(NINE) == 9 * 10 * 4
    assert NINE[NINE.variant == "RSE"].trained_255.isna().all()
    assert made_up_study.history().variant.nunique() == 9


@pytest.mark.filterwarnings("ignore:no such tests")
def test_a_study_of_one_variant_has_no_tests_and_no_claim_is_tested():
    found = robustness.families(table(variants=["original"]))
    assert found.empty
    assert set(study_claims.claims(found).left) == {"not tested"}
    assert study_claims.leak(found).empty
