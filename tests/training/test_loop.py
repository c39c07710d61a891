import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from rqlib import attacks, data, measures, models
from rqlib.core import files, projections, runtime
from rqlib.training import loop, objectives, recipes

RECIPE = recipes.Recipe(4, batch_size=64, lr=0.05, nesterov=True, schedule="triangle", ema_decay=0.9)


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def small_digits(images: int = 320) -> data.ImageDataset:
    dataset = data.load("digits")
    cut = partial(map, lambda tensor: tensor[:images])
    return dataclasses.replace(
        dataset, train=data.Split(*cut(dataset.train)), validation=data.Split(*cut(dataset.validation))
    )


def network(name: str = "SmallCNN", seed: int = 0):
    runtime.seed_everything(seed)
    return models.build(name, small_digits().spec, width=0.25 if name == "AlexNet_BN" else 1.0)


def assert_same_weights(one, two):
    states = one.state_dict(), two.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_fit_learns_and_logs():
    model, dataset = network(), data.load("digits")
    recipe = dataclasses.replace(RECIPE, epochs=6, ema_decay=None)
    history = loop.fit(model, dataset, objectives.natural, recipe)
    assert list(history.epoch) == [1, 2, 3, 4, 5, 6]
    assert history.validation_accuracy.max() > 0.8
    assert history.loss.iloc[-1] < 0.5 * history.loss.iloc[0]
    assert (history.images_per_second > 0).all()
    assert (history.lr > 0).all()


def test_best_epoch_is_kept_by_validation_and_last_is_on_file(tmp_path):
    model, dataset, states = network(), small_digits(), []

    def remember(model, rows):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    recipe = dataclasses.replace(RECIPE, epochs=5, lr=0.4, ema_decay=None, schedule="constant")
    history = loop.fit(
        model, dataset, objectives.natural, recipe, after_epoch=remember, checkpoint=tmp_path / "training.pt"
    )
    scores = history.validation_accuracy.to_numpy()
    best = max(range(5), key=lambda epoch: (scores[epoch], epoch))
    assert all(torch.equal(value, states[best][name]) for name, value in model.state_dict().items())
    last = loop.weights(tmp_path / "training.pt", "last")
    assert all(torch.equal(value, states[-1][name]) for name, value in last.items())
    with pytest.raises(ValueError, match="'best' or 'last'"):
        loop.weights(tmp_path / "training.pt", "first")


def test_the_last_epoch_is_kept_where_it_is_wanted(tmp_path):
    model, other, path = network(), network(), tmp_path / "training.pt"
    recipe = dataclasses.replace(RECIPE, lr=0.4, ema_decay=None, schedule="constant")
    loop.fit(model, small_digits(), objectives.natural, recipe, keep="last", checkpoint=path)
    last = loop.weights(path, "last")
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())
    loop.fit(other, small_digits(), objectives.natural, recipe, keep="last", checkpoint=path)
    assert_same_weights(model, other)
    with pytest.raises(ValueError, match="keep = 'best' or 'last', got 'first'"):
        loop.fit(model, small_digits(), objectives.natural, recipe, keep="first")


def test_robust_validation_selects(tmp_path):
    def darken(model, x, y):
        return (x - 0.2).clamp(min=0)

    model = network()
    history = loop.fit(model, small_digits(), objectives.natural, RECIPE, attack=darken)
    assert history.validation_robust_accuracy.between(0, 1).all()
    assert not history.validation_robust_accuracy.equals(history.validation_accuracy)


def test_a_collapse_under_attack_is_flagged_and_the_epoch_before_is_kept():
    seen = []

    def growing(model, x, y):
        seen.append(1)
        return x if len(seen) < 3 else torch.zeros_like(x)

    model, dataset, recipe = network(), small_digits(), dataclasses.replace(RECIPE, ema_decay=None)
    history = loop.fit(model, dataset, objectives.natural, recipe, attack=growing)
    assert list(history.overfitting) == ["", "", "catastrophic", "catastrophic"]
    assert measures.accuracy(model, *dataset.validation) == history.validation_accuracy[1]


def test_adversarial_training_resists_and_resumes_bit_for_bit(tmp_path):
    ball = {"ball": projections.Linf(0.1), "step_size": 0.04, "steps": 4}
    objective = objectives.named("adversarial", attack=attacks.named("pgd", best=False, **ball))
    attack = attacks.named("pgd", active_set=True, **ball)
    recipe = dataclasses.replace(RECIPE, epochs=10, lr=0.1, ema_decay=None)
    fit = partial(loop.fit, dataset=small_digits(), objective=objective, recipe=recipe, attack=attack)
    whole = network()
    history = fit(whole)
    robust = measures.accuracy(whole, *small_digits().validation, attack=attack)
    assert robust == history.validation_robust_accuracy.max()
    plain = network()
    loop.fit(plain, small_digits(), objectives.natural, recipe)
    assert robust > measures.accuracy(plain, *small_digits().validation, attack=attack) + 0.1

    def interrupt(model, rows):
        if len(rows) == 3:
            raise KeyboardInterrupt

    again = network()
    with pytest.raises(KeyboardInterrupt):
        fit(again, after_epoch=interrupt, checkpoint=tmp_path / "training.pt")
    resumed = network()
    fit(resumed, checkpoint=tmp_path / "training.pt")
    assert_same_weights(whole, resumed)


@pytest.mark.parametrize("name", ["SmallCNN", "AlexNet_BN"])
def test_resume_is_bit_exact_with_dropout_and_average(tmp_path, name):
    undisturbed, interrupted, dataset = network(name), network(name), small_digits()
    history = loop.fit(undisturbed, dataset, objectives.natural, RECIPE, seed=3)

    def stop(model, rows):
        if len(rows) == 3:
            raise KeyboardInterrupt

    fit = partial(loop.fit, dataset=dataset, objective=objectives.natural, recipe=RECIPE, seed=3)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, after_epoch=stop, checkpoint=tmp_path / "training.pt")
    fresh = network(name)
    resumed = fit(fresh, checkpoint=tmp_path / "training.pt")
    assert_same_weights(undisturbed, fresh)
    columns = ["epoch", "loss", "validation_accuracy", "lr"]
    assert resumed[columns].equals(history[columns])


KILLED = """
import sys, tests.training.test_loop as t
from rqlib.core import files, runtime
from rqlib.training import loop, objectives
runtime.use("cpu", "float32")
model = t.network()
loop.fit(model, t.small_digits(), objectives.natural, t.RECIPE, checkpoint=sys.argv[1])
files.save_tensors(sys.argv[2], model.state_dict())
"""


def test_kill_9_then_again_gives_the_same_weights_bit_for_bit(tmp_path):
    state, weights, undisturbed = (tmp_path / name for name in ("training.pt", "weights.pt", "undisturbed.pt"))
    command = [sys.executable, "-c", KILLED]
    environment = os.environ | {"PYTHONPATH": os.fspath(files.project_root())}
    run = partial(subprocess.run, check=True, env=environment, timeout=300)
    run([*command, tmp_path / "other.pt", undisturbed])
    process = subprocess.Popen([*command, state, weights], env=environment)
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not weights.exists()
    assert len(files.load_tensors(state)["history"]) >= 1
    run([*command, state, weights])
    one, two = files.load_tensors(weights), files.load_tensors(undisturbed)
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path, short = tmp_path / "training.pt", dataclasses.replace(RECIPE, epochs=1)
    loop.fit(network(), small_digits(), objectives.natural, short, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another training"):
        loop.fit(network(), small_digits(), objectives.natural, short, checkpoint=path, seed=1)
    with pytest.raises(ValueError, match="belongs to another training"):
        loop.fit(network(seed=1), small_digits(), objectives.natural, short, checkpoint=path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(tmp_path):
    calls, path = [], tmp_path / "training.pt"

    def breaks(model, x, y):
        calls.append(None)
        return objectives.natural(model, x, y) * (float("nan") if len(calls) == 8 else 1.0)

    with pytest.raises(FloatingPointError, match="loss nan in epoch 2, batch 3: .* last good state is epoch 1"):
        loop.fit(network(), small_digits(), breaks, RECIPE, checkpoint=path)
    kept = files.load_tensors(path)
    assert len(kept["history"]) == 1
    assert all(torch.isfinite(value).all() for value in kept["last"].values())


def test_modes_seeds_and_callbacks():
    dataset, recipe, steps = small_digits(), dataclasses.replace(RECIPE, epochs=1, ema_decay=None), []
    first, again, other = network(), network(), network()
    first.eval()
    before = torch.random.get_rng_state()
    loop.fit(first, dataset, objectives.natural, recipe, after_step=steps.append)
    assert len(steps) == 5
    assert steps[0] is first
    assert not any(module.training for module in first.modules())
    loop.fit(again, dataset, objectives.natural, recipe)
    loop.fit(other, dataset, objectives.natural, recipe, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same_weights(first, again)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_without_validation_images_the_last_epoch_is_kept():
    dataset = small_digits()
    empty = data.Split(dataset.validation.images[:0], dataset.validation.labels[:0])
    states = []
    model = network()
    keep = lambda model, rows: states.append({k: v.clone() for k, v in model.state_dict().items()})  # noqa: E731
    recipe = dataclasses.replace(RECIPE, ema_decay=None)
    loop.fit(model, dataclasses.replace(dataset, validation=empty), objectives.natural, recipe, after_epoch=keep)
    assert all(torch.equal(value, states[-1][name]) for name, value in model.state_dict().items())
