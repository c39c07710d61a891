"""Factors give the weight that they are made from, its gradients, and back again from a file."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib import models
from rqlib.core import parametrizations
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.pruning import factors, low_rank, packed
from tests.networks import COLOR, narrow

GRAY = ImageSpec(1, 28, 28, 10, (0.13,), (0.31,))
X = torch.rand(3, *COLOR.shape)


def matrices(*shapes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {f"layer{i}": torch.randn(*shape, generator=rng, dtype=torch.float64) for i, shape in enumerate(shapes)}


def stored(model, name):
    return factors.stored_factors(model.get_submodule(name))


@torch.no_grad()
def test_from_identity_the_network_is_the_same():
    model = narrow("SmallCNN")
    made = factors.factorized(model, dict.fromkeys(factors.layer_names(model)))
    assert torch.equal(made(X), model(X))
    assert [tuple(one.shape) for one in stored(made, "features.0.conv")] == [(6, 6), (6, 75), (6, 75)]
    assert torch.equal(parametrizations.bake(made)(X), model(X))
    table = factors.shares(made).groupby("factor").share.sum()
    assert table["rest"] == 0
    assert table.sum() == pytest.approx(1)
    tall = nn.Sequential(nn.Linear(4, 9))
    assert [tuple(one.shape) for one in stored(factors.factorized(tall, {"0": None}), "0")] == [(9, 4), (4, 4), (9, 4)]


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (7, 3), (4, 4)])
def test_the_formulas_of_both_shapes(rows, columns):
    layer, small = nn.Linear(columns, rows, bias=False), min(rows, columns)
    made = factors.factorized(nn.Sequential(layer), {"0": None})
    left, right, rest = stored(made, "0")
    for one in (left, right, rest):
        nn.init.normal_(one)
    identity = torch.eye(small)
    wanted = left @ (right + identity) + rest if columns <= rows else (left + identity) @ right + rest
    assert_close(made[0].weight, wanted)
    target = torch.randn(rows, columns)
    found = torch.autograd.grad((made[0].weight * target).sum(), (left, right, rest))
    for one, other in zip(found, torch.autograd.grad((wanted * target).sum(), (left, right, rest)), strict=True):
        assert_close(one, other)


def test_nearest_of_low_rank():
    (weight,) = matrices((5, 8)).values()
    left, right = low_rank.truncated(weight, 2)
    assert_close(weight - left @ right, weight - _svd(weight, 2))
    assert_close(left.norm(), right.norm())


def _svd(weight, rank):
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :rank] @ s[:rank].diag() @ v[:rank]


def test_ranks_by_what_they_capture_for_each_stored_number():
    weights = {"one": torch.diag(torch.tensor([9.0, 5.0, 1.0, 0.0])), "other": torch.zeros(4, 20)}
    weights["other"][0, 0], weights["other"][1, 1] = 8.0, 7.0
    # sigma^2 / (m + n): one 81/8, 25/8, 1/8; other 64/24, 49/24
    assert low_rank.ranks(weights, 32) == {"one": 1, "other": 1}
    assert low_rank.ranks(weights, 40) == {"one": None, "other": 1}, "rank 2 of 4 x 4 takes 16, as much as dense"
    assert low_rank.ranks(weights, 64) == {"one": None, "other": 2}
    assert low_rank.ranks({"one": weights["one"], "other": weights["other"] * 10}, 60) == {"one": 1, "other": 2}
    with pytest.raises(ValueError, match="at least 32 numbers, for rank 1 in all layers, got 31"):
        low_rank.ranks(weights, 31)


@pytest.mark.parametrize("budget", [10, 60, 150, 400])
def test_split_keeps_to_its_budget_and_captures_more_than_single_entries(budget):
    weights = matrices((6, 10), (12, 5), (8, 40))
    weights["layer0"] = 5 * torch.outer(*(matrices((1, 6), (1, 10), seed=1)[f"layer{i}"][0] for i in range(2)))
    found = low_rank.split(weights, budget)
    assert sum(int(part.count_nonzero()) for parts in found.values() for part in parts) <= budget
    missed = sum((weights[name] - b @ a - c).square().sum() for name, (b, a, c) in found.items())
    everything = torch.cat([weight.flatten() for weight in weights.values()]).square()
    alone = everything.sum() - everything.topk(min(budget, len(everything))).values.sum()
    assert missed <= alone + 1e-9
    assert (found["layer0"][0].shape[1] == 1) == (budget >= 16), "a matrix of rank 1, for 16 numbers"
    if budget == 400:
        assert missed == pytest.approx(0, abs=1e-9) or missed < 0.2 * alone


@torch.no_grad()
def test_factors_come_back_from_a_file(tmp_path):
    model = narrow("SmallCNN")
    weights = {name: model.get_submodule(name).weight.flatten(1) for name in factors.layer_names(model)}
    for title, made in {
        "identity": factors.factorized(model, dict.fromkeys(weights)),
        "svd": factors.with_factors(model, low_rank.split(weights, 5000)),
    }.items():
        changes = {"factorized": factors.ranks_of(made)}
        path = packed.save(tmp_path / f"{title}.rqz", made, "SmallCNN", COLOR, changes=changes)
        loaded, info = packed.load(path, expected="SmallCNN")
        assert torch.equal(loaded(X), made(X))
        assert info["changes"] == changes
        size = cost.storage(made)
        expected = (size["coded_bits"] + size["index_bits"] + size["other_bits"]) / 8
        assert path.stat().st_size == pytest.approx(expected, rel=0.1)
    assert path.stat().st_size < 5000 * 4 * 1.7
    with pytest.raises(ValueError, match="found parametrized layers"):
        packed.save(tmp_path / "wrong.rqz", made, "SmallCNN", COLOR)
    with pytest.raises(ValueError, match="expected a checkpoint of 'LeNet', got one of 'SmallCNN'"):
        packed.load(path, expected="LeNet")
    with pytest.raises(ValueError, match="to factorize, found none: features.7"):
        factors.factorized(model, {"features.7": 1})


def test_sizes_without_compression_are_those_of_the_paper():
    assert cost.storage(models.build("LeNet", GRAY))["dense_bits"] == 13_776_000
    with torch.device("meta"):
        assert 32 * cost.weight_count(models.build("ResNet_34", COLOR)) == 680_482_816


@torch.no_grad()
def test_the_size_of_factors_is_that_of_what_is_stored():
    """9 nonzeros of 3 distinct values in C: 9 * 2 bits and a codebook of 3; B and A are empty."""
    made = factors.factorized(nn.Sequential(nn.Linear(30, 20, bias=False)), {"0": 2})
    _, _, rest = stored(made, "0")
    rest.zero_()
    rest.view(-1)[:9] = torch.tensor([1.0, 2.0, 3.0]).repeat(3)
    size = cost.storage(made)
    assert size["coded_bits"] == 9 * 2 + 3 * 32
    assert size["index_bits"] == math.ceil(math.log2(math.comb(600, 9)))
    assert size["other_bits"] == 0
    before = copy.deepcopy(size)
    left, right, _ = stored(made, "0")
    left.fill_(1.0), right.fill_(1.0)
    after = cost.storage(made)
    assert after["coded_bits"] - before["coded_bits"] == 40 + 32 + 60 + 32, "two dense factors of one value each"
