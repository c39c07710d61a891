"""The greedy division of bits against all divisions."""

import itertools

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlib import quantization

BITS = (2, 4, 8)


def table(sizes, errors):
    return pandas.DataFrame(
        {"layer": f"layer{index}", "format": f"INT_{bits}", "coded_bits": size * bits, "logit_error": error / 4**bits}
        for index, (size, error) in enumerate(zip(sizes, errors, strict=True))
        for bits in BITS
    )


def total(frame, chosen, column):
    rows = frame.set_index(["layer", "format"])[column]
    return sum(rows[item] for item in chosen.items())


layers = st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 10)), min_size=1, max_size=5)


@settings(deadline=None)
@given(layers=layers, share=st.floats(0, 1))
def test_keeps_the_budget_and_a_larger_budget_is_no_worse(layers, share):
    frame = table(*zip(*layers, strict=True))
    least, most = (sum(size for size, _ in layers) * bits for bits in (2, 8))
    budget = least + share * (most - least)
    chosen = quantization.allocate(frame, budget)
    assert list(chosen) == [f"layer{index}" for index in range(len(layers))]
    assert total(frame, chosen, "coded_bits") <= budget
    richer = quantization.allocate(frame, most)
    assert set(richer.values()) == {"INT_8"}
    assert total(frame, richer, "logit_error") <= total(frame, chosen, "logit_error")


def test_is_near_the_best_of_all_divisions():
    frame = table([10, 40, 20, 5], [5.0, 0.1, 1.0, 8.0])
    names = frame.layer.unique()
    for budget in (200, 300, 450):
        every = (
            dict(zip(names, formats, strict=True)) for formats in itertools.product(frame.format.unique(), repeat=4)
        )
        fitting = [chosen for chosen in every if total(frame, chosen, "coded_bits") <= budget]
        best = min(total(frame, chosen, "logit_error") for chosen in fitting)
        assert total(frame, quantization.allocate(frame, budget), "logit_error") <= 1.5 * best


def test_sensitive_and_small_layers_keep_their_bits():
    chosen = quantization.allocate(table([100, 10], [0.01, 10.0]), 100 * 2 + 10 * 8)
    assert chosen == {"layer0": "INT_2", "layer1": "INT_8"}


def test_a_budget_that_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match="a budget of 30 bits cannot be kept: the smallest formats take 40"):
        quantization.allocate(table([10, 10], [1.0, 1.0]), 30)
