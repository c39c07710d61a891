"""Few nonzeros and few distinct values: examples by hand, and what holds after every step."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib.core import codebooks
from rqlib.measures import cost
from rqlib.pruning import constraints, factors
from rqlib.pruning.constraints import Codebooks
from rqlib.pruning.parametrizations import Anchored

A = [[0.9, -0.05], [0.3, 0.02]]
B = [[-1.2, 0.31], [0.04, -0.6]]
C = [[0.29, -0.8], [0.07, 0.0]]


def linear(rows=2, columns=2):
    """A factorized layer alone, its factors B, A, C from the example (2 x 2) or random."""
    torch.manual_seed(0)
    model = factors.factorized(nn.Sequential(nn.Linear(columns, rows, bias=False)), {"0": None})
    stored = factors.stored_factors(model[0])
    with torch.no_grad():
        for one, example in zip(stored, (B, A, C), strict=True):
            one.copy_(torch.tensor(example)) if rows == columns == 2 else one.normal_()
    return model, stored


def test_six_nonzeros_of_all_factors_together():
    model, (left, right, rest) = linear()
    constraints.project(model, count=6)
    assert_close(right, torch.tensor([[0.9, 0.0], [0.3, 0.0]]))
    assert_close(left, torch.tensor([[-1.2, 0.31], [0.0, -0.6]]))
    assert_close(rest, torch.tensor([[0.0, -0.8], [0.0, 0.0]]))
    plain = [2 * cost.code_bits(2) + 2 * 32, 3 * cost.code_bits(3) + 3 * 32]
    assert plain == [66, 102], "with a codebook; as they are they take less"
    assert cost.storage(model)["coded_bits"] <= 32 * 6


def test_of_equal_magnitudes_the_first_stay():
    model, stored = linear(3, 4)
    with torch.no_grad():
        for one in stored:
            one.fill_(-1.0)
    constraints.project(model, count=11)
    assert [int(one.count_nonzero()) for one in stored] == [9, 2, 0]
    assert stored[1].flatten().nonzero().flatten().tolist() == [0, 1]


def test_one_step_of_admm_by_hand(monkeypatch):
    theta = torch.tensor([0.5], requires_grad=True)
    anchor = Anchored(torch.tensor([0.4]), constraints.RHO)
    anchor.dual.fill_(0.1)
    anchor.penalty(theta).backward()
    assert_close(theta.grad, torch.tensor([0.02]))
    anchor.update(theta.detach(), lambda x: codebooks.nearest(x, torch.tensor([-0.5, 0.0, 0.55])))
    assert_close(anchor.nearest, torch.tensor([0.55]))
    assert_close(anchor.dual, torch.tensor([0.05]))


def test_the_codebook_moves_every_ten_steps_but_not_at_the_first_and_only_where_theta_is():
    model, hooks = linear(5, 8)[0], Codebooks(30, 1)
    model = hooks.attached(model)
    stored = factors.stored_factors(model[0])
    (step,) = (model[0].parametrizations.weight[0],)
    assert hooks.penalty(model).item() == 0
    moved = []
    for count in range(25):
        with torch.no_grad():
            for one in stored:
                one.add_(0.1 * torch.randn_like(one))
        before = step.anchors[1].nearest.clone()
        hooks.after_step(model)
        if not torch.equal(before, step.anchors[1].nearest):
            moved.append(count + 1)
        assert sum(int(one.count_nonzero()) for one in stored) == 30
        if moved == [count + 1] or moved[-1:] == [count + 1]:
            assert all(not anchor.nearest[one == 0].any() for anchor, one in zip(step.anchors, stored, strict=True))
            assert all(int(anchor.nearest.unique().count_nonzero()) <= 2 for anchor in step.anchors)
    assert moved == [11, 21]
    assert hooks.penalty(model) > 0
    wanted = [constraints.few_values((x + a.dual) * (x != 0), 1) for x, a in zip(stored, step.anchors, strict=True)]
    settled = hooks.settled(model)
    assert_close(list(factors.stored_factors(settled[0])), wanted)
    assert settled.state_dict().keys() == linear(5, 8)[0].state_dict().keys()
    assert constraints.check(settled, count=30, bits=1, title="x") is settled


def test_what_breaks_a_constraint_is_found():
    model, _ = linear()
    with pytest.raises(AssertionError, match="x: expected at most 6 nonzeros, got 11"):
        constraints.check(model, count=6, bits=None, title="x")
    with pytest.raises(AssertionError, match="x: expected at most 2 distinct values, got 4 in 0.left"):
        constraints.check(model, count=12, bits=1, title="x")
    empty = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.zeros_(empty[1].weight)
    with pytest.warns(UserWarning, match="x leaves no weight in 1$"):
        constraints.check(empty, count=9, bits=None, title="x")


def test_floor_of_a_share():
    assert [constraints.budget(ratio, 100) for ratio in (0.29, 0.005 + 0.01, 1)] == [29, 1, 100]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: constraints.budget(0, 100), "expected a ratio above 0 and at most 1 .nonzeros / weights., got 0"),
        (lambda: constraints.budget(1.1, 100), "above 0 and at most 1 .* got 1.1"),
        (lambda: constraints.budget(float("nan"), 100), "above 0 and at most 1"),
        (lambda: constraints.budget(0.005, 100), "a ratio that keeps a weight, got 0.005 of 100 weights"),
        (lambda: Codebooks(10, 0), "expected 1 to 16 bits .* got 0"),
        (lambda: Codebooks(10, 17), "expected 1 to 16 bits .* got 17"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_parametrization_that_is_none_of_factors_counts_as_it_is_stored():
    model = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(model[0], "weight", nn.Tanh(), unsafe=True)
    assert list(factors.tensors(model)) == ["0.weight"]
