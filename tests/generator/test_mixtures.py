import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlib.core import runtime
from rqlib.generator.mixtures import single, superposed


def test_a_single_label_has_the_whole_weight():
    assert single(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


@given(count=st.integers(1, 50), classes=st.integers(2, 120), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_mixtures_are_probabilities_of_few_classes(count, classes, seed):
    mixtures = superposed(count, classes, runtime.rng(seed))
    assert mixtures.shape == (count, classes)
    assert torch.allclose(mixtures.sum(1), torch.ones(count))
    assert mixtures.min() >= 0
    assert (mixtures > 0).sum(1).max() <= max(2, classes // 10)


def test_members_of_a_mixture_are_drawn_with_replacement():
    mixtures = superposed(2000, 10)
    assert torch.equal(mixtures, superposed(2000, 10, runtime.rng(0)))
    alone = (mixtures.amax(1) == 1).float().mean().item()
    assert alone == pytest.approx(0.1, abs=0.03)
    assert (superposed(500, 50) > 0).sum(1).max() == 5
