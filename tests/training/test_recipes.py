import dataclasses

import pytest
from torch import nn

from rqlib.training import recipes


def test_seed001_schedule_by_hand():
    recipe = recipes.recipe("seed001")
    times = {0.0: 0.0, 0.5: 0.05, 30: 0.1, 59.9: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008, 199.9: 0.0008}
    for time, lr in times.items():
        assert recipe.lr_at(time) == pytest.approx(lr)


def test_cosine_triangle_and_constant_by_hand():
    assert recipes.recipe("hydra").lr_at(0) == pytest.approx(0.1)
    assert recipes.recipe("hydra").lr_at(50) == pytest.approx(0.05)
    triangle = dataclasses.replace(recipes.recipe("fast"), epochs=20, lr=1.0)
    assert [triangle.lr_at(time) for time in (0, 2, 4, 12, 20)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert {recipes.recipe("seed003").lr_at(time) for time in (0, 5, 9.9)} == {1e-3}


def test_optimizer_leaves_frozen_parameters_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    group = recipes.recipe("seed001").optimizer(model).param_groups[0]
    assert len(group["params"]) == 2
    assert (group["nesterov"], group["momentum"], group["weight_decay"]) == (True, 0.9, 5e-4)


def test_epochs_are_the_recipes_own_or_those_asked_for():
    assert recipes.recipe("quick") == recipes.recipe("quick", epochs=0) == recipes.RECIPES["quick"]
    assert recipes.recipe("quick", epochs=3) == dataclasses.replace(recipes.RECIPES["quick"], epochs=3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: recipes.Recipe(1, batch_size=0), "epochs >= 0 and batch_size >= 1, got 1 and 0"),
        (lambda: recipes.recipe("quick", epochs=-1), "epochs >= 0 and batch_size >= 1, got -1 and 128"),
        (lambda: recipes.recipe("none", epochs=2), "recipe 'none' trains nothing: expected epochs 0, got 2"),
        (lambda: recipes.Recipe(1, lr=0.0), "lr > 0"),
        (lambda: recipes.Recipe(1, schedule="cosin"), "mean 'cosine'"),
        (lambda: recipes.recipe("seed01"), r"unknown recipe 'seed01' \(did you mean 'seed001'\?\)"),
    ],
)
def test_faulty_recipes_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_adam_and_late_steps():
    recipe = recipes.recipe("certified")
    optimizer = recipe.optimizer(nn.Linear(2, 2))
    assert type(optimizer).__name__ == "Adam"
    assert [recipe.lr_at(epoch) for epoch in (0, 119, 120, 140)] == pytest.approx([5e-4, 5e-4, 1e-4, 2e-5])
    with pytest.raises(ValueError, match="unknown optimizer 'adamw' .did you mean 'adam'"):
        recipes.Recipe(1, optimizer_name="adamw")
