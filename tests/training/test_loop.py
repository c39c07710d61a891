"""`fit` learns, keeps the right epoch, and goes on after an interruption bit for bit."""

import dataclasses
import functools

import pandas
import pytest
import torch

from rqlib import attacks, data, defenses, measures, models
from rqlib.core import files
from rqlib.training import loop, objectives, outcome, recipes

RECIPE = recipes.Recipe(4, batch_size=64, lr=0.05, nesterov=True, schedule="triangle", ema_decay=0.9)
PLAIN = dataclasses.replace(RECIPE, ema_decay=None)
UNSTEADY = dataclasses.replace(PLAIN, lr=0.4, schedule="constant")


@functools.cache
def few_digits(train: int = 320) -> data.ImageDataset:
    return data.load("digits").take(train=train, validation=144)


def network(name: str = "SmallCNN", seed: int = 0) -> torch.nn.Module:
    return models.build(name, few_digits().spec, width=0.25 if name == "AlexNet_BN" else 1.0, seed=seed)


def fit(model: torch.nn.Module, recipe: recipes.Recipe = RECIPE, **options) -> pandas.DataFrame:
    settings = {"dataset": few_digits(), "objective": objectives.natural} | options
    return loop.fit(model, recipe=recipe, **settings)


def states_after_epochs() -> tuple[list[dict], dict]:
    """A list, and options of `fit` that put the weights after every epoch into it."""
    states = []

    def remember(model, rows):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    return states, {"after_epoch": remember}


def interrupt(model, rows):
    if len(rows) == 3:
        raise KeyboardInterrupt


def assert_same(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_fit_learns_and_logs():
    history = fit(network(), dataclasses.replace(PLAIN, epochs=6), dataset=few_digits(500))
    assert list(history.epoch) == [1, 2, 3, 4, 5, 6]
    assert history.validation_accuracy.max() > 0.8
    assert history.loss.iloc[-1] < 0.5 * history.loss.iloc[0]
    assert (history.images_per_second > 0).all()
    assert (history.lr > 0).all()


def test_best_epoch_is_kept_by_validation_and_last_is_on_file(tmp_path):
    model, path, (states, options) = network(), tmp_path / "training.pt", states_after_epochs()
    history = fit(model, UNSTEADY, checkpoint=path, **options)
    scores = history.validation_accuracy.to_numpy()
    best = max(range(4), key=lambda epoch: (scores[epoch], epoch))
    assert history.epoch[history.kept].tolist() == [best + 1]
    assert best < 3, "the last epoch is not the best one"
    assert_same(model.state_dict(), states[best])
    assert_same(loop.weights(path, "best"), states[best])
    assert_same(loop.weights(path, "last"), states[-1])


@pytest.mark.parametrize(("keep", "validation"), [("last", 144), ("best", 0)])
def test_the_last_epoch_is_kept_where_it_is_wanted_or_nothing_is_scored(tmp_path, keep, validation):
    path, dataset = tmp_path / "training.pt", few_digits().take(validation=validation)
    for model in (network(), network()):  # the second finds its training done
        history = fit(model, UNSTEADY, dataset=dataset, keep=keep, checkpoint=path)
        assert outcome.summary(history)["best_epoch"] == UNSTEADY.epochs
        assert_same(model.state_dict(), loop.weights(path, "last"))


def test_a_collapse_under_attack_is_flagged_and_the_epoch_before_is_kept():
    seen = []

    def growing(model, x, y):
        seen.append(1)
        return x if len(seen) < 3 else torch.zeros_like(x)

    model = network()
    history = fit(model, PLAIN, attack=growing)
    assert list(history.overfitting) == ["", "", "catastrophic", "catastrophic"]
    assert history.validation_robust_accuracy[1] == history.validation_accuracy[1]
    assert measures.accuracy(model, *few_digits().validation) == history.validation_accuracy[1]


def test_adversarial_training_resists():
    objective, attack = objectives.robust("adversarial", epsilon=0.1, step_size=0.04, steps=4)
    recipe, dataset = dataclasses.replace(PLAIN, epochs=6, lr=0.1), few_digits().take(validation=64)
    model, plain = network(), network()
    history = fit(model, recipe, dataset=dataset, objective=objective, attack=attack)
    robust = measures.accuracy(model, *dataset.validation, attack=attack)
    assert robust == history.validation_robust_accuracy.max()
    fit(plain, recipe)
    assert robust > measures.accuracy(plain, *dataset.validation, attack=attack) + 0.1


def adversarial() -> dict:
    objective, attack = objectives.robust("adversarial", epsilon=0.1, step_size=0.1, steps=2)
    return {"objective": objective, "attack": attack, "dataset": few_digits(128)}


def penalized() -> dict:
    penalty = defenses.penalty("spectral+cosine", network(), few_digits().spec.shape)
    return {"objective": objectives.penalized(objectives.natural, penalty, 0.1)}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("AlexNet_BN", dict), ("SmallCNN", adversarial), ("SmallCNN", penalized)],
    ids=["dropout and average", "adversarial", "penalized"],
)
def test_resume_is_bit_exact(tmp_path, name, settings, capsys):
    options = settings()
    whole, resumed, path = network(name), network(name), tmp_path / "training.pt"
    history = fit(whole, seed=3, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(network(name), seed=3, after_epoch=interrupt, checkpoint=path, **options)
    assert len(files.load_tensors(path)["history"]) == 2
    assert "goes on" not in capsys.readouterr().out
    again = fit(resumed, seed=3, checkpoint=path, **options)
    assert f"goes on at epoch 3 of {len(history)}\n" in capsys.readouterr().out
    same = [column for column in history if column not in ("seconds", "images_per_second")]
    assert len(same) >= 5
    assert again[same].equals(history[same])
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(tmp_path):
    calls, path = [], tmp_path / "training.pt"

    def breaks(model, x, y):
        calls.append(None)
        return objectives.natural(model, x, y) * (float("nan") if len(calls) == 8 else 1.0)

    with pytest.raises(FloatingPointError, match="loss nan in epoch 2, batch 3: .* last good state is epoch 1"):
        fit(network(), objective=breaks, checkpoint=path)
    kept = files.load_tensors(path)
    assert len(kept["history"]) == 1
    assert all(torch.isfinite(value).all() for value in kept["last"].values())


def test_a_training_under_attack_that_diverges_says_so():
    attack = functools.partial(attacks.fgsm, ball=attacks.Linf(0.1))
    diverges = functools.partial(objectives.adversarial, attack=attack)
    with pytest.raises(FloatingPointError, match="loss nan in epoch 1, batch .*: .* Lower the learning rate"):
        fit(network("LeNet"), dataclasses.replace(PLAIN, lr=1e9), objective=diverges)


def test_modes_seeds_and_callbacks():
    recipe, steps = dataclasses.replace(PLAIN, epochs=1), []
    first, again, other = network(), network(), network()
    first.eval()
    before = torch.random.get_rng_state()
    fit(first, recipe, after_step=steps.append)
    assert len(steps) == 5
    assert steps[0] is first
    assert not any(module.training for module in first.modules())
    fit(again, recipe)
    fit(other, recipe, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same(first.state_dict(), again.state_dict())
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


ANOTHER, SHORT = "belongs to another training", dataclasses.replace(RECIPE, epochs=1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: fit(network(), checkpoint=path), ANOTHER),
        (lambda path: fit(network(), SHORT, checkpoint=path, seed=1), ANOTHER),
        (lambda path: fit(network(seed=1), SHORT, checkpoint=path), ANOTHER),
        (lambda path: fit(network(), keep="first"), "keep = 'best' or 'last', got 'first'"),
        (lambda path: loop.weights(path, "first"), "which = 'best' or 'last', got 'first'"),
    ],
    ids=["recipe", "seed", "weights", "keep", "which"],
)
def test_what_does_not_belong_is_refused(tmp_path, call, words):
    fit(network(), SHORT, checkpoint=tmp_path / "training.pt", dataset=few_digits().take(train=320, validation=8))
    with pytest.raises(ValueError, match=words):
        call(tmp_path / "training.pt")


def normalized() -> torch.nn.Module:
    """BatchNorm sees one value per image and channel."""
    torch.manual_seed(0)
    pooled = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 10)]
    return torch.nn.Sequential(*pooled)


def sizes_of_batches(images: int, batch_size: int) -> list[int]:
    seen, recipe = [], dataclasses.replace(PLAIN, epochs=1, batch_size=batch_size)

    def noted(model, x, y):
        seen.append(len(y))
        return objectives.natural(model, x, y)

    fit(normalized(), recipe, dataset=few_digits(images), objective=noted)
    return seen


def test_a_last_batch_of_one_joins_the_one_before_which_is_said_once(tmp_path):
    assert sizes_of_batches(66, 32) == [32, 32, 2]
    with pytest.warns(UserWarning, match="65 training images in batches of 32 leave one image.* then has 33") as said:
        assert sizes_of_batches(65, 32) == [32, 33]
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:65 training images")
def test_a_training_with_a_joined_batch_resumes_bit_for_bit(tmp_path):
    whole, resumed, options = normalized(), normalized(), {"dataset": few_digits(65)}
    fit(whole, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(normalized(), after_epoch=interrupt, checkpoint=tmp_path / "t.pt", **options)
    fit(resumed, checkpoint=tmp_path / "t.pt", **options)
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(("images", "batch_size"), [(1, 64), (3, 1)])
def test_batchnorm_on_single_images_is_refused_with_a_remedy(images, batch_size):
    with pytest.raises(
        ValueError, match="expected batches of at least two images.*got a batch of one; take batch_size"
    ):
        sizes_of_batches(images, batch_size)


def test_no_epochs_only_score_the_network(tmp_path):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):  # once, and once from the file
        history = fit(model, recipes.recipe("none"), checkpoint=tmp_path / "a.pt")
        assert history.epoch.tolist() == [0]
        assert "loss" not in history
        assert history.validation_accuracy[0] == measures.accuracy(model, *few_digits().validation)
    for found in (model.state_dict(), loop.weights(tmp_path / "a.pt"), loop.weights(tmp_path / "a.pt", "last")):
        assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    assert outcome.summary(history)["epochs_run"] == 0


def test_a_norm_that_is_clipped_shortens_the_step():
    """One step of SGD without momentum is as long as the learning rate times the clipped norm."""
    one = dataclasses.replace(RECIPE, epochs=1, batch_size=320, momentum=0.0, nesterov=False, ema_decay=None)
    lengths = {}
    for clip in (None, 1e-3):
        model, recipe = network(), dataclasses.replace(one, schedule="constant", clip_norm=clip)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        fit(model, recipe)
        moved = [(new - old).norm() for new, old in zip(model.parameters(), before, strict=True)]
        lengths[clip] = torch.stack(moved).norm().item() / recipe.lr
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert lengths[None] > 0.01


def test_an_objective_may_keep_the_last_epoch():
    """A ball that grows makes the first epochs the most accurate and the least certified."""
    states, options = states_after_epochs()
    certified, attack = objectives.robust("ibp", epsilon=0.1, step_size=0.05, steps=1)
    assert attack is not None
    model = objectives.initialize(network(), certified)
    fit(model, dataclasses.replace(PLAIN, epochs=2), objective=objectives.penalized(certified, None, 0.0), **options)
    assert all(torch.equal(value, states[-1][name]) for name, value in model.state_dict().items())
    weighted = objectives.penalized(certified, lambda model: 0 * next(model.parameters()).sum(), 1.0)
    assert weighted.keep == "last"
    assert objectives.penalized(objectives.natural, lambda model: 0.0, 1.0).keep == "best"


def test_new_weights_are_what_the_objective_asks_for():
    plain = network()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    objectives.initialize(plain, objectives.natural)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    certified, _ = objectives.robust("ibp", epsilon=0.1, step_size=0.05, steps=1)
    objectives.initialize(plain, certified)
    changed = [name for name, value in plain.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(name.endswith("weight") for name in changed)
