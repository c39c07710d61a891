"""The name of what a network was defended with, from the parameters of its training: ``original``, ``Q+A``, ..."""

from collections.abc import Mapping

from rqlib.training.objectives import CERTIFIED, NOISY, ROBUST

WORDS = {"": "original", "A": "adversarial", "Q": "quantized", "R": "regularized"}
"""Names of the variants with at most one defense; others join the letters: ``Q+A``, ``Q+R``, ``A+R``, ``Q+A+R``."""

LEAKY = "leaky"
"""Trained by the mistake of `objectives.leaky_adversarial`."""


def variant(parameters: Mapping) -> str:
    """Q: rounded weights or another activation; A: trained under attack; R: a penalty on the weights; RSE: noise.

    A training for certificates, or for smoothing, gives the name of its objective, before these letters.
    """
    objective = parameters.get("objective", "natural")
    rounded = parameters.get("weight_format", "none") != "none" or parameters.get("activation", "relu") != "relu"
    penalized = parameters.get("penalty", "none") != "none" and parameters.get("penalty_strength", 1) > 0
    attacked = objective in ROBUST
    letters = "+".join(letter for letter, on in zip("QAR", (rounded, attacked, penalized), strict=True) if on)
    name = WORDS.get(letters, letters)
    if objective == "leaky_adversarial":
        name = LEAKY if letters == "A" else f"{letters}, {LEAKY}"
    if objective in CERTIFIED | NOISY:
        letters = name = f"{objective}+{letters}" if letters else objective
    if parameters.get("noise_std", 0) > 0:
        name = f"RSE+{letters}" if letters else "RSE"
    return name


def trained_radius(parameters: Mapping) -> float:
    """The radius, in gray levels of 255, of the ball that a network was trained for; NaN without one."""
    return parameters["epsilon_255"] if parameters.get("objective") in ROBUST | CERTIFIED else float("nan")
