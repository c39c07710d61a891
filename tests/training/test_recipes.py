import dataclasses

import pytest
import torch
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


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_lowers_a_quadratic(name):
    torch.manual_seed(0)
    model, recipe = nn.Linear(4, 1), recipes.recipe(name)
    optimizer, x = recipe.optimizer(model), torch.randn(64, 4)
    losses = []
    for step in range(40):
        optimizer.param_groups[0]["lr"] = recipe.lr_at(recipe.epochs * (step + 0.5) / 40)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"epochs": 0}, "epochs and batch_size"), ({"lr": 0.0}, "lr > 0"), ({"schedule": "cosin"}, "mean 'cosine'")],
)
def test_bad_recipes(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipes.recipe("quick"), **settings)


def test_unknown_recipe():
    with pytest.raises(ValueError, match=r"unknown recipe 'seed01' \(did you mean 'seed001'\?\)"):
        recipes.recipe("seed01")
