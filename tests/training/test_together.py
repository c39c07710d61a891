"""Networks trained as one stack are those that `fit` trains one after another."""

import pytest
import torch
from torch.testing import assert_close

from rqlib import attacks, data, defenses, models
from rqlib.core import derived, files, runtime
from rqlib.core.projections import Linf
from rqlib.training import loop, objectives, recipes, stack, together

RECIPE = recipes.Recipe(2, batch_size=64, lr=0.02, weight_decay=1e-3, momentum=0.9)
SEEDS = [0, 4]


@pytest.fixture(autouse=True)
def float32():
    with runtime.exact():
        yield


def images(validation: int = 64) -> data.ImageDataset:
    return data.load("digits").take(train=160, validation=validation)


def networks(**settings) -> list[torch.nn.Module]:
    made = (models.build("SmallCNN", images().spec, seed=seed) for seed in SEEDS)
    return [defenses.defend(network, **settings) for network in made]


def penalized(name: str, strength: float):
    penalty = defenses.penalty(name, networks()[0], images().spec.shape)
    return objectives.penalized(objectives.natural, penalty, strength)


def against_fgsm():
    attack = attacks.named("pgd", ball=Linf(0.05), step_size=0.05, steps=1, random_start=False)
    return objectives.named("adversarial", attack=attack)


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({}, lambda: objectives.natural),
        ({"activation": "DTReLU_4", "weight_format": "range_8"}, lambda: objectives.natural),
        ({"activation": "jacob_ema_4", "weight_format": "LSQ_4"}, lambda: objectives.natural),
        ({}, lambda: penalized("cosine+spectral", 0.1)),
        ({}, against_fgsm),
    ],
    ids=["natural", "quantized", "averaged range", "penalized", "adversarial"],
)
def test_the_stack_gives_the_losses_and_weights_of_the_loop(settings, objective):
    alone, stacked, unscored = networks(**settings), networks(**settings), images(validation=0)
    pairs = zip(alone, SEEDS, strict=True)
    histories = [loop.fit(network, unscored, objective(), RECIPE, seed=seed) for network, seed in pairs]
    found = together.fit_together(stacked, unscored, objective(), RECIPE, SEEDS)
    mean = sum(history.loss for history in histories) / len(histories)
    assert_close(found[0].loss.tolist(), mean.tolist(), rtol=1e-4, atol=1e-4)
    assert histories[0].loss.tolist() != histories[1].loss.tolist()
    for one, other in zip(stacked, alone, strict=True):
        for name, value in other.state_dict().items():
            assert_close(one.state_dict()[name], value, rtol=1e-2, atol=5e-3)


def test_a_stack_computes_what_its_networks_compute_and_gives_them_back():
    made = networks(activation="DDTReLU_3")
    whole, x = stack.Stack(made).eval(), torch.rand(6, *images().spec.shape)
    expected = torch.cat([network.eval()(part) for network, part in zip(made, x.chunk(2), strict=True)])
    assert_close(whole(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for weight in whole.weights:
            weight.add_(1)
    before = [[weight.clone() for weight in network.parameters()] for network in made]
    whole.unstack(made)
    for network, weights in zip(made, before, strict=True):
        for weight, old in zip(network.parameters(), weights, strict=True):
            assert_close(weight, old + 1)


def test_a_stack_that_computes_something_else_is_refused():
    made = networks()
    whole, x = stack.Stack(made), torch.rand(3, *images().spec.shape)
    stack.check(whole, made, x)
    with torch.no_grad():
        whole.weights[0][1] += 0.1
    with pytest.raises(derived.NotEqual, match="stacking network 1 changes what"):
        stack.check(whole, made, x)


def test_it_goes_on_after_an_interruption(tmp_path, monkeypatch):
    whole, resumed, path = networks(), networks(), tmp_path / "together.pt"
    histories = together.fit_together(whole, images(), objectives.natural, RECIPE, SEEDS)
    calls = []

    def breaks(model, x, y):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return objectives.natural(model, x, y)

    with pytest.raises(KeyboardInterrupt):
        together.fit_together(networks(), images(), breaks, RECIPE, SEEDS, checkpoint=path)
    assert len(files.load_tensors(path)["histories"][0]) == 1
    again = together.fit_together(resumed, images(), objectives.natural, RECIPE, SEEDS, checkpoint=path)
    assert again[1].loss.tolist() == histories[1].loss.tolist()
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    averaging = recipes.Recipe(1, ema_decay=0.9)
    with pytest.raises(ValueError, match="without ema_decay"):
        together.fit_together(networks(), images(), objectives.natural, averaging, SEEDS)


def test_batches_of_one_image_are_those_of_the_loop():
    alone, stacked, few = networks()[:1], networks()[:1], data.load("digits").take(train=5, validation=0)
    single = recipes.Recipe(1, batch_size=1, lr=1e-3)
    history = loop.fit(alone[0], few, objectives.natural, single, seed=SEEDS[0])
    found = together.fit_together(stacked, few, objectives.natural, single, SEEDS[:1])
    assert_close(found[0].loss.tolist(), history.loss.tolist(), rtol=1e-3, atol=1e-3)


def test_noise_is_drawn_by_the_seeds_whatever_was_drawn_before():
    losses = []
    for state in (1, 2):
        torch.manual_seed(state)
        histories = together.fit_together(networks(noise_std=0.2), images(), objectives.natural, RECIPE, SEEDS)
        losses.append(histories[0].loss.tolist())
    assert losses[0] == losses[1]
