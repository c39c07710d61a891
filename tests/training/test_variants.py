"""Variants are named by what a network was trained with."""

import math

import pytest

from rqlib.training import variants

A = {"objective": "adversarial", "epsilon_255": 8.0}
Q = {"activation": "DTReLU_4", "weight_format": "range_8"}
R = {"penalty": "cosine", "penalty_strength": 0.1}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "original"),
        ({"objective": "smoothed"}, "smoothed"),
        (Q | {"objective": "ibp"}, "ibp+Q"),
        ({"objective": "gaussian", "noise_std": 0.1}, "RSE+gaussian"),
        (Q | {"objective": "gaussian", "noise_std": 0.1}, "RSE+gaussian+Q"),
        (Q | {"noise_std": 0.1}, "RSE+Q"),
        (A, "adversarial"),
        ({"objective": "n_fgsm"}, "adversarial"),
        (Q, "quantized"),
        ({"weight_format": "LSQ_4"}, "quantized"),
        (R, "regularized"),
        (R | {"penalty_strength": 0.0}, "original"),
        (Q | A, "Q+A"),
        (Q | R, "Q+R"),
        (A | R, "A+R"),
        (Q | A | R, "Q+A+R"),
        ({"noise_std": 0.1}, "RSE"),
        (A | {"noise_std": 0.1}, "RSE+A"),
        ({"objective": "leaky_adversarial"}, "leaky"),
    ],
)
def test_variant(parameters, name):
    assert variants.variant(parameters) == name


def test_only_training_for_a_ball_has_a_radius():
    assert variants.trained_radius(A) == variants.trained_radius(A | {"objective": "ibp"}) == 8.0
    assert math.isnan(variants.trained_radius({"objective": "natural", "epsilon_255": 8.0}))
