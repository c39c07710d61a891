"""Overfitting of a robust training: its robust accuracy on validation images rose, and then fell."""

from collections.abc import Sequence
from itertools import pairwise

ROBUST, CATASTROPHIC = "robust", "catastrophic"


def flag(accuracies: Sequence[float]) -> str:
    """The kind of overfitting: ``""`` for none, ``"robust"`` or ``"catastrophic"``.

    Catastrophic: from one epoch to the next, the robust validation accuracy fell by more than 0.1 and by more than half
    of the best (Wong et al. 2020, arXiv 2001.03994). Robust: the last one is more than 0.03 below the best (Rice et
    al. 2020, arXiv 2002.11569).
    """
    if not len(accuracies):
        return ""
    best = max(accuracies)
    if largest_fall(accuracies) > max(0.1, best / 2):
        return CATASTROPHIC
    return ROBUST if best - accuracies[-1] > 0.03 else ""


def largest_fall(accuracies: Sequence[float]) -> float:
    """The largest fall from one epoch to the next; 0 if the accuracy never fell."""
    return max((max(before - after, 0.0) for before, after in pairwise(accuracies)), default=0.0)
