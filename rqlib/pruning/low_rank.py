"""A budget of nonzeros spent on low rank: which ranks, and how many single entries beside them."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rqlib.core import projections
from rqlib.pruning.factors import Factors

Weights = Mapping[str, Tensor]
"""Name of each layer -> its weight as a matrix (m, n)."""


@dataclass(frozen=True)
class _Rank:
    """One singular value of a layer, the ``number``-th from 0: stored, it costs m + n numbers and captures sigma^2."""

    layer: str
    number: int
    cost: int
    captured: float


def ranks(weights: Weights, budget: int) -> dict[str, int | None]:
    """The rank of each layer such that ``sum r (m + n) <= budget``, chosen by sigma^2 per stored number.

    Every layer has a rank of at least 1. None: the layer stays dense, because m n is no more than r (m + n).

    Raises:
        ValueError: the budget is less than what rank 1 takes in all layers.
    """
    least = sum(_cost(weight, 1) for weight in weights.values())
    if budget < least:
        raise ValueError(f"expected a budget of at least {least:,} numbers, for rank 1 in all layers, got {budget:,}")
    chosen, left = dict.fromkeys(weights, 1), budget - least
    for rank in _by_gain(weights):
        more = _cost(weights[rank.layer], rank.number + 1) - _cost(weights[rank.layer], rank.number)
        if rank.number == chosen[rank.layer] and more <= left:
            chosen[rank.layer] += 1
            left -= more
    return {name: None if _is_dense(weights[name], rank) else rank for name, rank in chosen.items()}


def truncated(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B (m, rank) and A (rank, n), whose product is the nearest matrix of that rank; both of the same size."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).to(weight.dtype), (root[:, None] * right[:rank]).to(weight.dtype)


def split(weights: Weights, budget: int) -> dict[str, Factors]:
    """B, A, C of each layer with ``budget`` nonzeros together, such that much of ``sum ||W||^2`` is captured.

    Ranks are tried in the order of sigma^2 per stored number. A layer gets one more for as long as this captures more
    than the single entries that it displaces. C holds the largest entries of ``W - B A`` over all layers together.
    """
    rests = {name: weight.double() for name, weight in weights.items()}
    svds = {name: torch.linalg.svd(rest, full_matrices=False) for name, rest in rests.items()}
    taken, left, captured, best = dict.fromkeys(weights, 0), budget, 0.0, _largest_squares(rests, budget)
    for rank in _by_gain(weights):
        if rank.cost > left or rank.number > taken[rank.layer]:
            continue
        u, values, v = (part.select(axis, rank.number) for part, axis in zip(svds[rank.layer], (1, 0, 0), strict=True))
        one_less = rests[rank.layer] - values * torch.outer(u, v)
        total = captured + rank.captured + _largest_squares(rests | {rank.layer: one_less}, left - rank.cost)
        if total <= best:
            continue  # nor are further ranks of this layer tried
        rests[rank.layer], best = one_less, total
        taken[rank.layer], left, captured = rank.number + 1, left - rank.cost, captured + rank.captured
    masks = projections.largest_of_all(list(rests.values()), left)
    return {
        name: (*truncated(weight, taken[name]), (rests[name] * mask).to(weight.dtype))
        for (name, weight), mask in zip(weights.items(), masks, strict=True)
    }


def _by_gain(weights: Weights) -> Iterator[_Rank]:
    """All singular values of all layers in descending order of sigma^2 per stored number."""
    return heapq.merge(*map(_ranks_of, weights.items()), key=lambda rank: -rank.captured / rank.cost)


def _ranks_of(item: tuple[str, Tensor]) -> list[_Rank]:
    name, weight = item
    squares = torch.linalg.svdvals(weight.double()).square().tolist()
    return [_Rank(name, number, sum(weight.shape), square) for number, square in enumerate(squares)]


def _cost(weight: Tensor, rank: int) -> int:
    """Stored numbers of a layer of so many ranks, or of the dense layer if they are no more."""
    return min(rank * sum(weight.shape), weight.numel())


def _is_dense(weight: Tensor, rank: int) -> bool:
    return rank * sum(weight.shape) >= weight.numel()


def _largest_squares(rests: Weights, count: int) -> float:
    """The sum of the ``count`` largest squares of all entries together."""
    squares = torch.cat([rest.flatten() for rest in rests.values()]).square()
    return squares.topk(min(count, len(squares))).values.sum().item()
