"""Every method prunes and trains as it says, each phase for its own objective; a killed one ends the same."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib import attacks, data, measures, models, quantization
from rqlib.core import files, parametrizations, projections, runtime
from rqlib.core.parametrizations import steps_of
from rqlib.measures import cost
from rqlib.pruning import algorithms, masks
from rqlib.pruning.parametrizations import Anchored, Masked, Scored
from rqlib.training import objectives, recipes
from tests.networks import COLOR, IMAGE, narrow

RECIPE = recipes.Recipe(3, batch_size=64, lr=0.05, weight_decay=1e-4, schedule="cosine", augment=False)
ROBUST = partial(attacks.pgd, ball=projections.Linf(16 / 255), step_size=4 / 255, steps=5)


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def digits(images: int = 320) -> data.ImageDataset:
    dataset = data.load("digits")
    cut = lambda split: data.Split(*(part[:images] for part in split))  # noqa: E731
    return dataclasses.replace(dataset, train=cut(dataset.train), validation=cut(dataset.validation))


def network(seed: int = 0) -> nn.Module:
    runtime.seed_everything(seed)
    return models.build("SmallCNN", data.load("digits").spec)


def phase(**changes) -> algorithms.Phase:
    return dataclasses.replace(algorithms.Phase(digits(), objectives.natural, RECIPE), **changes)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.filterwarnings("ignore:kept")
def test_at_the_start_the_masks_of_scores_are_those_of_magnitude(name):
    model = narrow(name)
    for kept in (0.5, 0.05):
        expected = masks.magnitude_masks(model, kept)
        scored = steps_of(algorithms.with_scores(model, kept), Scored)
        assert scored.keys() == expected.keys()
        assert all(torch.equal(scored[name].mask(), mask) for name, mask in expected.items())


@pytest.mark.parametrize("structure", ["columns", "2:4", "filters"])
@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18", "MobileNetV2", "Inception_BN"])
def test_also_of_whole_structures(name, structure):
    model = narrow(name)
    expected = masks.magnitude_masks(model, 0.5, structure=structure, image=IMAGE)
    scored = steps_of(algorithms.with_scores(model, 0.5, structure=structure, image=IMAGE), Scored)
    assert all(torch.equal(scored[name].mask(), mask) for name, mask in expected.items() if name in scored)
    assert scored.keys() == expected.keys()


def test_scaled_initialization_and_what_is_trained():
    model = network()
    scored = algorithms.with_scores(model, 0.1)
    step = steps_of(scored, Scored)["features.0.conv.weight"]
    weight = model.features[0].conv.weight
    assert_close(step.scores, (6 / weight[0].numel()) ** 0.5 * weight / weight.abs().max())
    trained = {name for name, parameter in scored.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in scored.named_parameters() if name.endswith("scores")}
    along = algorithms.with_scores(model, 0.1, norms=True)
    assert along.features[0].norm.weight.requires_grad
    assert not along.features[0].conv.bias.requires_grad


def test_scores_learn_and_the_weights_stay_as_they_were():
    model, before = network(), network().state_dict()
    masked = algorithms.hydra(model, 0.2, phase(recipe=dataclasses.replace(RECIPE, lr=0.5)))
    stored = masked.state_dict()
    for name, mask in masks.magnitude_masks(model, 0.2).items():
        owner = name.removesuffix(".weight")
        assert torch.equal(stored[f"{owner}.parametrizations.weight.original"], before[name])
        assert not torch.equal(stored[f"{owner}.parametrizations.weight.0.mask"], mask)
    assert all(parameter.requires_grad for parameter in masked.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks.check(masked, 0.2)


@pytest.mark.parametrize("structure", masks.STRUCTURES)
@pytest.mark.parametrize("method", algorithms.METHODS)
def test_every_method_prunes_every_structure(method, structure):
    if method == "multi_step" and structure == "2:4":
        pytest.skip("2:4 has one share, not a row of them")
    model, kept = network(), 0.5
    before = copy.deepcopy(model.state_dict())
    masked = algorithms.run(
        method, model, kept, phase(recipe=dataclasses.replace(RECIPE, epochs=2)), phase(), structure=structure
    )
    found = masks.check(masked, kept, structure=structure)
    assert found.fraction.between(0.24, 0.7).iloc[1:-1].all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = parametrizations.bake(masked)
    assert {type(module) for module in plain.modules()} == {type(module) for module in model.modules()}
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_fine_tuning_leaves_the_masks_alone():
    model = network()
    masked = algorithms.lwm(model, 0.1, phase())
    before = {name: step.mask.clone() for name, step in steps_of(masked, Masked).items()}
    phase().fit(masked, "finetune")
    assert all(torch.equal(step.mask, before[name]) for name, step in steps_of(masked, Masked).items())
    assert not torch.equal(masked.features[0].conv.weight, algorithms.lwm(model, 0.1, phase()).features[0].conv.weight)


def test_admm_pulls_the_weights_toward_the_sparse_ones():
    model, kept = network(), 0.1

    def distance(rho):
        seen = []
        spy = lambda model, *rest: seen.append(model) or objectives.natural(model, *rest)  # noqa: E731
        algorithms.admm(
            model, kept, phase(objective=spy, recipe=dataclasses.replace(RECIPE, epochs=6)), rho=rho, every=2
        )
        (step, *_), anchored = steps_of(seen[-1], Anchored).values(), seen[-1]
        assert step.rho.item() == pytest.approx(rho * 1.3**2, rel=1e-5)
        weight = anchored.classifier.linear1.weight.detach()
        return (weight - weight * masks.keep_weights(weight, kept)).norm() / weight.norm()

    assert distance(1.0) < 0.7 * distance(1e-6)


def test_multi_step_keeps_less_from_epoch_to_epoch():
    shares = []

    def spy(model, x, y):
        shares.append(masks.achieved(model).fraction.iloc[2].item())
        return objectives.natural(model, x, y)

    masked = algorithms.multi_step(network(), 0.01, phase(objective=spy))
    assert sorted(set(shares), reverse=True) == pytest.approx([0.01 ** (t / 3) for t in (1, 2, 3)], rel=1e-3)
    assert shares == sorted(shares, reverse=True)
    masks.check(masked, 0.01)


def test_each_phase_has_its_own_objective_and_lwm_may_train_as_long():
    calls = []

    def named(name):
        return lambda model, x, y: calls.append(name) or objectives.natural(model, x, y)

    pruning, finetuning = phase(objective=named("prune")), phase(objective=named("finetune"))
    steps = 5 * RECIPE.epochs
    algorithms.run("hydra", network(), 0.5, pruning, finetuning)
    assert calls == ["prune"] * steps + ["finetune"] * steps
    calls.clear()
    algorithms.run("lwm", network(), 0.5, pruning, finetuning, equal_epochs=True)
    assert calls == ["finetune"] * 2 * steps
    calls.clear()
    algorithms.run("lwm", network(), 0.5, pruning, None)
    assert not calls


def test_a_robust_network_hides_in_one_that_is_not():
    """Weights untouched, half of them masked by scores that were trained against an attack."""
    dataset, model = digits(), network()
    phase(recipe=dataclasses.replace(RECIPE, epochs=12, lr=0.1)).fit(model, "pretrain")
    images, strong = [part[:150] for part in dataset.test], partial(ROBUST, steps=10)
    before = measures.accuracy(model, *images, attack=strong)
    robust = objectives.named("adversarial", attack=partial(ROBUST, steps=3, best=False))
    masked = algorithms.hydra(
        model, 0.5, phase(objective=robust, recipe=dataclasses.replace(RECIPE, epochs=12, lr=0.5))
    )
    assert measures.accuracy(masked, *images, attack=strong) > before + 0.1


def test_eight_bits_after_pruning_keep_the_zeros():
    dataset, model = digits(), network()
    phase(recipe=dataclasses.replace(RECIPE, epochs=6)).fit(model, "pretrain")
    pruned = parametrizations.bake(algorithms.run("lwm", model, 0.3, phase(), phase()))
    quantized = quantization.ptq(pruned, "INT_8", dataset.train.images)
    for name in ("features.0.conv", "classifier.linear1"):
        zeros = pruned.get_submodule(name).weight == 0
        assert not quantized.get_submodule(name).weight[zeros].any()
    accuracies = [measures.accuracy(each, *dataset.test) for each in (pruned, quantized)]
    assert abs(accuracies[0] - accuracies[1]) < 0.02


def test_masks_that_change_nothing_are_found():
    model = network()
    assert not algorithms.changes_output(model, copy.deepcopy(model), digits())
    assert algorithms.changes_output(model, algorithms.lwm(model, 0.5, phase()), digits())
    with torch.no_grad():
        model.classifier.linear3.weight.zero_()
        model.classifier.linear3.weight.fill_(1e-30)
        model.classifier.linear3.bias.fill_(1.0)
    with pytest.raises(AssertionError, match="the masks change no logit"):
        algorithms.run("lwm", model, 0.5, phase(), None)


def test_unknown_method_and_pruned_networks_are_refused():
    with pytest.raises(ValueError, match="unknown method 'hydr' .did you mean 'hydra'"):
        algorithms.run("hydr", network(), 0.5, phase(), None)
    pruned = parametrizations.bake(algorithms.lwm(network(), 0.1, phase()))
    for method in algorithms.METHODS:
        with pytest.raises(ValueError, match="already pruned"):
            algorithms.run(method, pruned, 0.5, phase(), None)
    assert algorithms.with_scores(narrow("SmallCNN"), 0.5, structure="filters", image=IMAGE)(
        torch.rand(1, *COLOR.shape)
    ).any()


KILLED = """
import sys, tests.pruning.test_algorithms as t
from pathlib import Path
from rqlib.core import files, parametrizations, runtime
from rqlib.pruning import algorithms
runtime.use("cpu", "float32")
phases = [t.phase(folder=Path(sys.argv[2])) for _ in range(2)]
model = algorithms.run(sys.argv[1], t.network(), 0.2, *phases, **({"every": 1} if sys.argv[1] == "admm" else {}))
files.save_tensors(sys.argv[3], parametrizations.bake(model).state_dict())
"""


@pytest.mark.parametrize("method", ["admm", "hydra", "multi_step"])
def test_kill_9_in_each_phase_then_again_gives_the_same_network(method, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.fspath(files.project_root())}
    command, result = [sys.executable, "-c", KILLED, method], tmp_path / "result.pt"
    scope = "" if method == "hydra" else "-layer"
    for killed_in in (f"{method}-0.2-weights{scope}", f"finetune-{method}-0.2-weights"):
        state = tmp_path / f"{method}/{killed_in}.pt"
        process = subprocess.Popen([*command, state.parent, result], env=environment)
        while not state.exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not result.exists()
    subprocess.run([*command, tmp_path / method, result], check=True, env=environment, timeout=300)
    with runtime.using("cpu", "float32"):
        options = {"every": 1} if method == "admm" else {}
        undisturbed = parametrizations.bake(
            algorithms.run(method, network(), 0.2, phase(), phase(), **options)
        ).state_dict()
    found = files.load_tensors(result)
    assert all(torch.equal(value, undisturbed[name]) for name, value in found.items())


def test_states_of_other_methods_and_sizes_are_not_taken_up(tmp_path):
    kept = phase(folder=tmp_path)
    for method, share in (("lwm", 0.2), ("hydra", 0.2), ("hydra", 0.1)):
        apart, together = (
            algorithms.run(method, network(), share, part, part).state_dict() for part in (phase(), kept)
        )
        assert all(torch.equal(value, apart[name]) for name, value in together.items())


def test_compact_is_the_widest_with_no_more_weights():
    spec = COLOR
    for weights in (1000, 8000, 60000):
        found = algorithms.compact("SmallCNN", spec, weights)
        count = cost.weight_count(found)
        assert 0.6 * weights < count <= weights
        assert found(torch.rand(2, *spec.shape)).shape == (2, 10)
    with pytest.raises(ValueError, match="leaves 0 channels"):
        algorithms.compact("SmallCNN", spec, 10)
