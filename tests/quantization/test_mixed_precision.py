"""The greedy division of bits against all divisions, and the accuracy of mixes on a trained network."""

import itertools

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlib import measures, quantization
from rqlib.core import runtime

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


def test_a_budget_that_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match="a budget of 30 bits cannot be kept: the smallest formats take 40"):
        quantization.allocate(table([10, 10], [1.0, 1.0]), 30)


def test_mixes_are_scored_as_ptq_and_accuracy_score_them(trained, digits):
    calibration, test = digits.calibration(64), digits.test.take(100)
    sensitivity = quantization.sweep(trained, ["INT_8", "INT_2"], calibration, *test, per_layer=True)
    mix = quantization.allocate(sensitivity, 4 * measures.weight_count(trained))
    assert set(mix.values()) == {"INT_2", "INT_8"}
    mixes = {"coarse": "INT_2", "mix": mix, "fine": "INT_8"}
    options = {"activations": "INT_6", "granularity": "channel", "ranges": "mse"}
    with runtime.using("cpu", "bfloat16"):
        frame = quantization.score_mixes(trained, mixes, calibration, *test, **options)
    assert frame.weights.tolist() == list(mixes)
    assert frame.bits_per_weight[[0, 2]].tolist() == [2, 8]
    assert 2 < frame.bits_per_weight[1] <= 4
    assert frame.kib[2] == measures.weight_count(trained) / 1024
    networks = [quantization.ptq(trained, weights, calibration, **options) for weights in mixes.values()]
    assert frame.accuracy.tolist() == [measures.accuracy(network, *test) for network in networks]
    assert frame.accuracy[0] < frame.accuracy[1] <= frame.accuracy[2]
