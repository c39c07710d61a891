"""Every method prunes and trains as it says, each phase for its own objective."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from rqlib import attacks, data, measures, models, quantization
from rqlib.core import parametrizations, projections, runtime
from rqlib.core.parametrizations import steps_of
from rqlib.pruning import algorithms, masks
from rqlib.pruning.parametrizations import Anchored, Masked, stored
from rqlib.training import objectives, recipes

RECIPE = recipes.Recipe(3, batch_size=64, lr=0.05, weight_decay=1e-4, schedule="cosine", augment=False)
BATCHES = 2
ROBUST = partial(attacks.pgd, ball=projections.Linf(16 / 255))


def digits(images: int = 64 * BATCHES) -> data.ImageDataset:
    return data.load("digits").take(train=images, validation=images)


def network() -> nn.Module:
    runtime.seed_everything(0)
    return models.build("SmallCNN", data.load("digits").spec)


def phase(**changes) -> algorithms.Phase:
    recipe = {name: changes.pop(name) for name in ("epochs", "lr") if name in changes}
    recipe = dataclasses.replace(RECIPE, **recipe)
    return dataclasses.replace(algorithms.Phase(digits(), objectives.natural, recipe), **changes)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = network()
    phase(dataset=digits(320), epochs=8, lr=0.1).fit(model, "pretrain")
    return model


def test_scores_learn_and_the_weights_stay_as_they_were():
    model, before = network(), network().state_dict()
    masked = algorithms.hydra(model, 0.2, phase(lr=0.5))
    weights, steps = stored(masked, Masked), steps_of(masked, Masked)
    for name, mask in masks.magnitude_masks(model, 0.2).items():
        assert torch.equal(weights[name], before[name])
        assert not torch.equal(steps[name].mask, mask)
    assert all(parameter.requires_grad for parameter in masked.parameters())


@pytest.mark.parametrize("structure", masks.STRUCTURES)
@pytest.mark.parametrize("method", algorithms.METHODS)
def test_every_method_prunes_every_structure(method, structure):
    if method == "multi_step" and structure == "2:4":
        pytest.skip("2:4 keeps one fraction only, and multi_step needs several")
    model, kept = network(), 0.5
    before = copy.deepcopy(model.state_dict())
    masked = algorithms.run(method, model, kept, phase(epochs=2), phase(epochs=1), structure=structure)
    found = masks.check(masked, kept, structure=structure)
    assert found.kept.between(0.24, 0.7).iloc[1:-1].all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = parametrizations.bake(masked)
    assert not torch.equal(plain.classifier.linear3.bias, before["classifier.linear3.bias"]), "it was fine-tuned"
    assert {type(module) for module in plain.modules()} == {type(module) for module in model.modules()}
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_admm_pulls_the_weights_toward_the_sparse_ones():
    model, kept = network(), 0.1

    def distance(rho):
        seen = []
        spy = lambda model, *rest: seen.append(model) or objectives.natural(model, *rest)  # noqa: E731
        algorithms.admm(model, kept, phase(dataset=digits(320), objective=spy, epochs=6), rho=rho, every=2)
        (step, *_), anchored = steps_of(seen[-1], Anchored).values(), seen[-1]
        assert step.rho.item() == pytest.approx(rho * 1.3**2, rel=1e-5)
        weight = anchored.classifier.linear1.weight.detach()
        return (weight - weight * masks.keep_weights(weight, kept)).norm() / weight.norm()

    assert distance(1.0) < 0.7 * distance(1e-6)


def test_multi_step_keeps_less_from_epoch_to_epoch():
    shares = []

    def spy(model, x, y):
        shares.append(masks.achieved(model).kept.iloc[2].item())
        return objectives.natural(model, x, y)

    masked = algorithms.multi_step(network(), 0.01, phase(objective=spy))
    expected = [0.01 ** (t / 3) for t in (1, 2, 3) for _ in range(BATCHES)]
    assert shares == pytest.approx(expected, rel=1e-3)
    masks.check(masked, 0.01)


@pytest.mark.parametrize(
    ("method", "finetuned", "expected"),
    [
        ("hydra", True, ["prune"] * 3 + ["finetune"] * 3),
        ("lwm", True, ["finetune"] * 6),
        ("lwm", False, []),
    ],
)
def test_each_phase_has_its_own_objective_and_lwm_may_train_as_long(method, finetuned, expected):
    calls = []

    def named(name):
        return phase(objective=lambda model, x, y: calls.append(name) or objectives.natural(model, x, y))

    finetuning = named("finetune") if finetuned else None
    algorithms.run(method, network(), 0.5, named("prune"), finetuning, equal_epochs=True)
    assert calls == [name for name in expected for _ in range(BATCHES)]


def test_a_robust_network_hides_in_one_that_is_not(trained):
    """Weights untouched, half of them masked by scores that were trained against an attack."""
    images = digits(320)
    judge = partial(measures.accuracy, attack=partial(ROBUST, steps=10, step_size=4 / 255))
    robust = objectives.named("adversarial", attack=partial(ROBUST, steps=2, step_size=16 / 255, best=False))
    masked = algorithms.hydra(trained, 0.5, phase(dataset=images, objective=robust, epochs=12, lr=0.5))
    x, y = images.test.take(100)
    assert judge(masked, x, y) > judge(trained, x, y) + 0.1


def test_eight_bits_after_pruning_keep_the_zeros(trained):
    images = digits(320)
    pruned = algorithms.run("lwm", trained, 0.3, phase(), phase(dataset=images))
    quantized = quantization.ptq(pruned, "INT_8", images.train.images)
    for name, step in steps_of(pruned, Masked).items():
        assert not quantized.get_submodule(name.removesuffix(".weight")).weight[~step.mask].any()
    accuracies = [measures.accuracy(each, *images.test) for each in (pruned, quantized)]
    assert abs(accuracies[0] - accuracies[1]) < 0.02


def test_masks_that_change_nothing_are_found():
    model = network()
    assert not algorithms.changes_output(model, copy.deepcopy(model), digits())
    assert algorithms.changes_output(model, algorithms.lwm(model, 0.5, phase()), digits())
    half = parametrizations.bake(algorithms.lwm(model, 0.5, phase()))
    with pytest.raises(AssertionError, match="the masks change no logit"):
        algorithms.run("lwm", half, 0.5, phase(), None)


def test_a_network_whose_training_has_failed_is_pruned_with_a_warning():
    """It gives every image the same logits; that no mask changes them is no fault of the masks."""
    model = network()
    with torch.no_grad():
        model.classifier.linear3.weight.fill_(1e-30)
        model.classifier.linear3.bias.fill_(1.0)
    with pytest.warns(UserWarning, match="gives every image the same logits, which no mask changes"):
        algorithms.run("lwm", model, 0.5, phase(), None)


@pytest.mark.parametrize(
    ("method", "pruned", "words"),
    [
        ("hydr", False, "unknown method 'hydr' .did you mean 'hydra'"),
        *((method, True, "already pruned") for method in algorithms.METHODS),
    ],
)
def test_what_cannot_be_pruned_is_refused(method, pruned, words):
    model = network()
    if pruned:
        model = parametrizations.bake(algorithms.lwm(model, 0.1, phase()))
    with pytest.raises(ValueError, match=words):
        algorithms.run(method, model, 0.5, phase(), None)
