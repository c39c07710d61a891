"""Mixtures of labels: what the generator is asked for, a weight for every class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rqlib.core import runtime


def single(labels: Tensor, classes: int) -> Tensor:
    """Labels (N,) as mixtures (N, K), with the whole weight on one class."""
    return F.one_hot(labels, classes).float()


def superposed(count: int, classes: int, rng: torch.Generator | None = None) -> Tensor:
    """Mixtures (count, K) of labels drawn with replacement, with weights softmax(N(0, 1)).

    A mixture has a tenth as many labels as there are classes, and at least 2 (Qimera, arXiv 2111.02625).

    Args:
        rng: random numbers, on the CPU; by default those of seed 0.
    """
    rng = rng or runtime.rng(0)
    members = max(2, classes // 10)
    labels = torch.randint(classes, (count, members), generator=rng)
    weights = torch.randn(count, members, generator=rng).softmax(1)
    return torch.zeros(count, classes).scatter_add_(1, labels, weights)
