import copy

import pytest
import torch

from rqlib import data, generator, models
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import network
from rqlib.generator.training import Training, frozen, step
from tests import generated

SHORT = {"epochs": 2, "steps": 3, "batch_size": 16}


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def fresh(teacher=None, spec=None, **options) -> network.Generator:
    return network.build(teacher or generated.teacher(), spec or data.load("digits").spec, channels=8, **options)


def state(model) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_what_is_asked():
    built = network.build(generated.teacher(), data.load("digits").spec, channels=16)
    history = generator.fit(built, generated.teacher(), epochs=4, steps=15, batch_size=64, lr=3e-3)
    assert list(history.epoch) == [1, 2, 3, 4]
    assert history.class_accuracy.iloc[-1] > 0.9
    assert history.batchnorm_distance.iloc[-1] < 0.3 * history.batchnorm_distance.iloc[0]
    assert history.lr.tolist() == pytest.approx([3e-3] * 3 + [3e-4])
    assert torch.allclose(
        torch.tensor(history.loss), torch.tensor(history.cross_entropy + 0.1 * history.batchnorm_distance), rtol=1e-4
    )


def test_the_teacher_stays_as_it_is():
    teacher = copy.deepcopy(generated.teacher()).train()
    teacher.classifier.eval()
    teacher.features[0].conv.weight.requires_grad_(False)
    before, modes = state(teacher), [module.training for module in teacher.modules()]
    generator.fit(fresh(teacher), teacher, **SHORT)
    assert same(before, state(teacher))
    assert modes == [module.training for module in teacher.modules()]
    assert not teacher.features[0].conv.weight.requires_grad
    assert teacher.classifier[-1].weight.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_hooks_and_gradients_are_put_back_after_an_exception():
    teacher = copy.deepcopy(generated.teacher())

    def stop(model, rows):
        raise KeyboardInterrupt

    built = fresh(teacher)
    with pytest.raises(KeyboardInterrupt):
        generator.fit(built, teacher, after_epoch=stop, **SHORT)
    assert not any(module._forward_hooks for module in teacher.modules())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert not built.training


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    whole, broken, path = fresh(), fresh(), tmp_path / "fit.pt"
    settings = SHORT | {"epochs": 3, "superposed_fraction": 0.5}
    expected = generator.fit(whole, generated.teacher(), **settings)

    def stop(model, rows):
        if len(rows) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.fit(broken, generated.teacher(), checkpoint=path, after_epoch=stop, **settings)
    resumed = fresh()
    history = generator.fit(resumed, generated.teacher(), checkpoint=path, **settings)
    assert same(state(whole), state(resumed))
    assert history.loss.tolist() == expected.loss.tolist()
    with pytest.raises(ValueError, match="belongs to another training"):
        generator.fit(fresh(), generated.teacher(), checkpoint=path, **settings | {"steps": 4})
    other = copy.deepcopy(generated.teacher())
    next(other.parameters()).data.mul_(1.01)
    for built, teacher in ((fresh(), other), (fresh(seed=5), generated.teacher())):
        with pytest.raises(ValueError, match="belongs to another training"):
            generator.fit(built, teacher, checkpoint=path, **settings)


def test_superposed_batches_are_less_sure():
    plain, mixed = fresh(), fresh()
    one = generator.fit(plain, generated.teacher(), superposed_fraction=0.0, **SHORT)
    other = generator.fit(mixed, generated.teacher(), superposed_fraction=1.0, **SHORT)
    assert one.loss.tolist() != other.loss.tolist()


def test_a_teacher_without_batchnorm_gets_smooth_images():
    teacher = generated.teacher("CNN_small")
    rough = fresh(teacher)
    history = generator.fit(rough, teacher, epochs=3, steps=15, batch_size=32, lr=5e-3)
    assert "batchnorm_distance" not in history
    assert history.total_variation.iloc[-1] < history.total_variation.iloc[0]
    assert history.class_accuracy.iloc[-1] > 0.9


def test_the_attacked_copy_adds_to_the_loss():
    built = fresh()
    training = Training(built, generated.teacher(), None, 1e-3, {})
    mixture = network.single(torch.arange(10), 10)
    seen = []

    def attack(model, x, y):
        seen.append((x.requires_grad, y.tolist()))
        return (x + 0.1).clamp(0, 1)

    weights = state(built)
    with frozen(generated.teacher()), training.mode():
        plain = step(training, generated.teacher(), mixture, runtime.rng(0))
        built.load_state_dict(weights)
        attacked = step(training, generated.teacher(), mixture, runtime.rng(0), attack)
    assert seen == [(False, list(range(10)))]
    assert attacked["cross_entropy"] == pytest.approx(plain["cross_entropy"].item(), rel=1e-4)
    assert attacked["loss"] > plain["loss"]


@pytest.mark.parametrize("size", [28, 64])
def test_other_sizes_of_images(size):
    spec = ImageSpec(1, size, size, 7, mean=(0.5,), std=(0.25,))
    teacher = models.build("ResNet_18", spec, width=0.07)
    built = fresh(teacher, spec)
    generator.fit(built, teacher, epochs=1, steps=1, batch_size=4)
    assert network.sample(built, 7).images.shape == (7, 1, size, size)


def test_a_loss_that_is_not_finite_stops_it(tmp_path):
    teacher = copy.deepcopy(generated.teacher())
    next(iter(teacher.classifier.parameters())).data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="loss nan in epoch or round 1 of the generator: none was kept"):
        generator.fit(fresh(), teacher, **SHORT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs of at least 1, got 0"),
        ({"batch_size": 1}, "batch_size of at least 2, got 1"),
        ({"superposed_fraction": 1.5}, r"superposed_fraction in \[0, 1\], got 1.5"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        generator.fit(fresh(), generated.teacher(), **SHORT | settings)
