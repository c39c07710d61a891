"""Levels that fit values best, against every possible division of a few values, and Lloyd's for many."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rqlib.core import codebooks
from rqlib.quantization import INT

few = st.lists(st.floats(-2, 2).map(lambda value: round(value, 1)), min_size=1, max_size=9)
EXAMPLE = torch.tensor([-1.2, -0.8, -0.6, 0, 0, 0.05, 0.29, 0.31, 0.9])


def error(x, levels):
    return (x.double() - codebooks.nearest(x.double(), levels.double())).square().sum().item()


def least_error(values, levels):
    """Over all divisions of sorted values into groups, of which one may become 0 and the others their means."""
    x = sorted(value for value in values if value)
    found = [sum(value * value for value in x)]
    for groups in range(1, min(levels + 1, len(x)) + 1):
        for cuts in itertools.combinations(range(1, len(x)), groups - 1):
            parts = [x[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(x)])]
            spread = [sum((value - sum(part) / len(part)) ** 2 for value in part) for part in parts]
            to_zero = [sum(value * value for value in part) for part in parts]
            found += [sum(spread)] if groups <= levels else []
            found += [sum(spread) - one + zero for one, zero in zip(spread, to_zero, strict=True)]
    return min(found)


@given(few, st.integers(1, 4))
@settings(deadline=None)
def test_no_division_of_the_values_is_better(values, levels):
    x = torch.tensor(values)
    found = codebooks.codebook(x, levels)
    assert error(x, found) == pytest.approx(least_error(values, levels), abs=1e-6)
    assert found.tolist() == sorted(set(found.tolist())), "no level twice"
    assert (found == 0).sum() == 1
    assert len(found) <= levels + 1
    assert not codebooks.nearest(x, found)[x == 0].any()


@pytest.mark.parametrize("levels", [1, 7, 40])
def test_against_the_plain_dynamic_program(levels):
    x = torch.randn(80, generator=torch.Generator().manual_seed(levels), dtype=torch.float64).abs().sort().values
    spread = torch.full((81, 81), torch.inf, dtype=torch.float64)
    for begin in range(81):
        for end in range(begin, 81):
            part = x[begin:end]
            spread[begin, end] = (part - part.mean()).square().sum() if len(part) else 0
    costs = torch.cat([x.new_zeros(1), x.square().cumsum(0)])
    for _ in range(levels):
        costs = (costs[:, None] + spread).amin(0)
    assert error(x, codebooks.codebook(x, levels)) == pytest.approx(costs[-1].item(), rel=1e-5, abs=1e-9)


def test_an_example_by_hand():
    levels = codebooks.codebook(EXAMPLE, 2)
    assert_close(levels, torch.tensor([-0.866667, 0.0, 0.9]))
    assert error(EXAMPLE, levels) == pytest.approx(0.36936667, abs=1e-6)
    assert not codebooks.nearest(EXAMPLE, levels)[3:8].any(), ".29 and .31 become 0, too"


@pytest.mark.parametrize(
    ("start", "end", "least"),
    [([-1.0, 1.0], [-0.866667, 0.9], 0.36936667), ([-0.7, 0.3], [-0.866667, 0.5], 0.42936667)],
)
def test_lloyd_ends_where_its_start_leads_it(start, end, least):
    x, centers = EXAMPLE[EXAMPLE != 0].double(), torch.tensor(start, dtype=torch.float64)
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    for _ in range(10):
        centers = codebooks._lloyd_step(x, sums, centers)
    assert_close(centers.float(), torch.tensor(end))
    assert error(EXAMPLE, torch.cat([centers, centers.new_zeros(1)]).sort().values) == pytest.approx(least, abs=1e-6)


def test_many_values_end_in_a_fixed_point_with_a_pinned_zero(monkeypatch):
    monkeypatch.setattr(codebooks, "_ITERATIONS", 10_000)
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    levels = codebooks.codebook(x, 15)
    assert len(levels) == 16
    assert (levels == 0).sum() == 1
    closest = (x[:, None] - levels).abs().argmin(1)
    means = torch.stack([x[closest == index].mean() for index in range(16)])
    assert_close(means[levels != 0], levels[levels != 0], rtol=1e-4, atol=1e-4)
    scale = x.abs().max() / INT(4).max
    assert error(x, levels) < error(x, INT(4).levels * scale) / 2
    assert torch.equal(levels, codebooks.codebook(x.flip(0).reshape(100, 200), 15))


def test_the_exact_levels_are_better_than_lloyds():
    x = torch.randn(600, generator=torch.Generator().manual_seed(1))
    lloyd = codebooks._lloyd(x.double().sort().values, 30)
    assert error(x, codebooks.codebook(x, 30)) < error(x, torch.cat([lloyd, lloyd.new_zeros(1)]).sort().values)


def test_empty_clusters_move_to_far_values(monkeypatch):
    monkeypatch.setattr(codebooks, "EXACT", 0)
    x = torch.cat([torch.ones(1000), torch.ones(1000) * 1.0001, torch.arange(50.0, 60.0), torch.tensor([-70.0])])
    levels = codebooks.codebook(x, 12)
    assert codebooks.nearest(x, levels).unique().tolist() == levels[levels != 0].tolist()
    assert error(x, levels) < 1


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (torch.tensor([1.0, 5.0, 1.0, -2.0]), [-2.0, 0.0, 1.0, 5.0]),
        (torch.zeros(5), [0.0]),
        (torch.empty(0, 3), [0.0]),
        (torch.tensor([[-0.0, 3.0]]), [0.0, 3.0]),
    ],
)
def test_few_values_are_the_levels(values, levels):
    assert codebooks.codebook(values, 3).tolist() == levels


@pytest.mark.parametrize(
    ("values", "levels", "words"),
    [
        (torch.tensor([1.0, torch.nan]), 2, "expected finite values"),
        (torch.tensor([torch.inf, 1.0]), 2, "expected finite values"),
        (torch.ones(3), 0, "expected at least 1 level beside 0, got 0"),
    ],
)
def test_errors(values, levels, words):
    with pytest.raises(ValueError, match=words):
        codebooks.codebook(values, levels)
