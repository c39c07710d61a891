"""Balls: nearest point, steepest direction, uniform draws. Masks: the largest entries, alone and together."""

import dataclasses
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rqlib.core import projections
from rqlib.core.projections import L2, Linf

balls = st.one_of(st.builds(Linf, st.floats(0, 1)), st.builds(L2, st.floats(0, 5)))
seeds = st.integers(0, 2**31)
both = pytest.mark.parametrize("ball", [Linf(0.3), L2(0.7)], ids=["Linf", "L2"])


def tensors(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@given(balls, seeds)
@settings(deadline=None)
def test_projection_is_inside_and_idempotent(ball, seed):
    once = ball.project(tensors(seed, 4, 3, 5, 5, scale=3.0))
    assert ball.contains(once, 1e-9).all()
    assert_close(ball.project(once), once, rtol=1e-12, atol=1e-12)


@given(balls, seeds)
@settings(deadline=None)
def test_projection_is_nearest(ball, seed):
    """p is the projection of d exactly if <d - p, q - p> <= 0 for all q of the convex set."""
    torch.manual_seed(seed)
    delta = tensors(seed, 4, 1, 3, 3, scale=2.0)
    nearest = ball.project(delta)
    inner = ((delta - nearest) * (ball.sample(delta) - nearest)).flatten(1).sum(1)
    assert (inner <= 1e-9).all()


@both
def test_steepest_has_length_one_and_no_direction_is_steeper(ball):
    gradient = tensors(0, 8, 3, 4, 4)
    unit = dataclasses.replace(ball, epsilon=1.0)
    assert_close(ball.norm(ball.steepest(gradient)), torch.ones(8, dtype=torch.float64))
    gain = (gradient * ball.steepest(gradient)).flatten(1).sum(1)
    dual = gradient.flatten(1).abs().sum(1) if isinstance(ball, Linf) else gradient.flatten(1).norm(dim=1)
    assert_close(gain, dual)
    others = torch.stack([(gradient * unit.sample(gradient)).flatten(1).sum(1) for _ in range(100)])
    assert (others <= gain).all()


@both
def test_sample_is_uniform(ball):
    torch.manual_seed(0)
    delta = ball.sample(torch.empty(4000, 1, 2, 2, dtype=torch.float64))
    assert ball.contains(delta, 0.0).all()
    volume = (ball.norm(delta) / ball.epsilon) ** 4  # of the ball inside a uniform point: uniform in [0, 1]
    assert scipy.stats.kstest(volume.numpy(), "uniform").pvalue > 1e-3
    assert delta.mean(0).abs().max() < 0.02


@both
def test_contains(ball):
    edge = torch.zeros(3, 1, 2, 2)
    edge[0, 0, 0, 0], edge[1, 0, 0, 0], edge[2, 0, 0, 0] = ball.epsilon, ball.epsilon + 1e-3, torch.nan
    assert ball.contains(edge).tolist() == [True, False, False]


def test_whole_ball_reaches_every_image():
    x = torch.zeros(1, 3, 4, 4)
    assert Linf(0.1).whole(x).contains(torch.ones_like(x), 1e-6).all()
    assert L2(0.1).whole(x).epsilon == math.sqrt(48)


@both
def test_empty_batches_and_zero_gradients(ball):
    assert not ball.steepest(torch.zeros(2, 1, 3, 3)).any()
    empty = torch.empty(0, 3, 4, 4)
    assert ball.sample(empty).shape == ball.project(empty).shape == ball.steepest(empty).shape == empty.shape


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Linf(-0.1), "expected a finite epsilon >= 0"),
        (lambda: Linf(math.nan), "expected a finite epsilon >= 0"),
        (lambda: L2(-0.1), "expected a finite epsilon >= 0"),
        (lambda: L2(math.inf), "expected a finite epsilon >= 0"),
        (lambda: Linf(8), "8 gray levels are 8 / 255"),
        (lambda: projections.kept_count(0, 10), "above 0 and at most 1"),
        (lambda: projections.kept_count(1.001, 10), "above 0 and at most 1"),
        (lambda: projections.kept_count(math.nan, 10), "above 0 and at most 1"),
        (lambda: projections.n_of_m(torch.ones(1, 4), 5, 4), "0 < N <= M, got 5:4"),
    ],
)
def test_what_is_no_ball_and_no_mask_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@given(seeds, st.integers(0, 60), st.booleans())
@settings(deadline=None)
def test_largest_keeps_exactly_so_many_and_none_smaller_than_one_that_goes(seed, count, ties):
    x = tensors(seed, 3, 4, 5)
    x = x.round() if ties else x
    mask = projections.largest(x, count)
    assert mask.sum() == count
    if 0 < count < 60:
        assert x[mask].abs().min() >= x[~mask].abs().max()


def test_ties_go_to_the_first_in_any_memory_format():
    x = torch.ones(2, 3, 2, 2)
    for tensor in (x, x.to(memory_format=torch.channels_last)):
        assert projections.largest(tensor, 5).flatten().nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 4]


@given(seeds, st.floats(0.001, 1))
@settings(deadline=None)
def test_largest_of_all_is_largest_of_the_concatenation(seed, kept):
    parts = [tensors(seed, 7), tensors(seed + 1, 2, 3), tensors(seed + 2, 4, 1, 2)]
    count = projections.kept_count(kept, 21)
    masks = projections.largest_of_all(parts, count)
    assert [mask.shape for mask in masks] == [part.shape for part in parts]
    together = projections.largest(torch.cat([part.flatten() for part in parts]), count)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), together)


@given(seeds, st.integers(1, 3), st.integers(0, 2), st.integers(1, 9))
@settings(deadline=None)
def test_n_of_m_against_a_loop(seed, n, more, inputs):
    m, x = n + more, tensors(seed, 2, inputs, 2, 1)
    mask = projections.n_of_m(x, n, m)
    for o in range(2):
        for k in range(2):
            for start in range(0, inputs, m):
                group = x[o, start : start + m, k, 0].abs()
                kept = mask[o, start : start + m, k, 0]
                assert kept.sum() == min(n, len(group))
                assert set(kept.nonzero().flatten().tolist()) == set(group.topk(min(n, len(group))).indices.tolist())
