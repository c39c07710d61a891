import copy

import pytest
import torch

from rqlib import data, generator, models
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator.network import Generator
from tests import generated

SHORT = {"epochs": 2, "steps": 2, "batch_size": 8}


def fresh(teacher=None, spec=None, **options) -> Generator:
    return generator.build(teacher or generated.teacher(), spec or data.load("digits").spec, channels=8, **options)


def test_it_learns_what_is_asked():
    _, history = generated.training_of_generator()
    assert list(history.epoch) == [1, 2, 3, 4]
    assert history.class_accuracy.iloc[-1] > 0.9
    assert history.batchnorm_distance.iloc[-1] < 0.3 * history.batchnorm_distance.iloc[0]
    assert history.lr.tolist() == pytest.approx([5e-3] * 3 + [5e-4])
    expected = history.cross_entropy + 0.1 * history.batchnorm_distance
    assert history.loss.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_teacher_stays_as_it_is():
    teacher = copy.deepcopy(generated.teacher()).train()
    generator.fit(fresh(teacher), teacher, **SHORT)
    assert generated.same(teacher, generated.teacher())
    assert teacher.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    whole, broken, path = fresh(), fresh(), tmp_path / "fit.pt"
    settings = SHORT | {"epochs": 3, "superposed_fraction": 0.5}
    expected = generator.fit(whole, generated.teacher(), **settings)

    def stop(model, rows):
        if len(rows) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.fit(broken, generated.teacher(), checkpoint=path, after_epoch=stop, **settings)
    assert not broken.training
    assert not any(module._forward_hooks for module in generated.teacher().modules())
    resumed = fresh()
    history = generator.fit(resumed, generated.teacher(), checkpoint=path, **settings)
    assert generated.same(whole, resumed)
    assert history.loss.tolist() == expected.loss.tolist()


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    settings = SHORT | {"checkpoint": tmp_path / "fit.pt"}
    generator.fit(fresh(), generated.teacher(), **settings)
    other = copy.deepcopy(generated.teacher())
    next(other.parameters()).data.mul_(1.01)
    for built, teacher, changed in (
        (fresh(), generated.teacher(), {"steps": 4}),
        (fresh(), other, {}),
        (fresh(seed=5), generated.teacher(), {}),
    ):
        with pytest.raises(ValueError, match="belongs to another training"):
            generator.fit(built, teacher, **settings | changed)


def test_superposed_batches_change_what_is_learned():
    one = generator.fit(fresh(), generated.teacher(), superposed_fraction=0.0, **SHORT)
    other = generator.fit(fresh(), generated.teacher(), superposed_fraction=1.0, **SHORT)
    assert one.loss.tolist() != other.loss.tolist()


def test_a_teacher_without_batchnorm_gets_smooth_images():
    teacher = generated.teacher("CNN_small")
    history = generator.fit(fresh(teacher), teacher, epochs=3, steps=12, batch_size=16, lr=5e-3)
    assert "batchnorm_distance" not in history
    assert history.total_variation.iloc[-1] < history.total_variation.iloc[0]
    assert history.class_accuracy.iloc[-1] > 0.9


@pytest.mark.parametrize("size", [28, 64])
def test_other_sizes_of_images(size):
    spec = ImageSpec(1, size, size, 7, mean=(0.5,), std=(0.25,))
    teacher = models.build("ResNet_18", spec, width=0.07)
    built = fresh(teacher, spec)
    generator.fit(built, teacher, epochs=1, steps=1, batch_size=4)
    assert generator.sample(built, 7).images.shape == (7, 1, size, size)


def broken_teacher():
    teacher = copy.deepcopy(generated.teacher())
    next(iter(teacher.classifier.parameters())).data[0, 0] = torch.nan
    return teacher


@pytest.mark.parametrize(
    ("teacher", "settings", "error", "words"),
    [
        (generated.teacher, {"epochs": 0}, ValueError, "epochs of at least 1, got 0"),
        (generated.teacher, {"steps": 0}, ValueError, "steps of at least 1, got 0"),
        (generated.teacher, {"batch_size": 1}, ValueError, "batch_size of at least 2, got 1"),
        (generated.teacher, {"superposed_fraction": 1.5}, ValueError, r"superposed_fraction in \[0, 1\], got 1.5"),
        (broken_teacher, {}, FloatingPointError, "loss nan in epoch or round 1 of the generator: none was kept"),
    ],
)
def test_errors(teacher, settings, error, words):
    with pytest.raises(error, match=words):
        generator.fit(fresh(), teacher(), **SHORT | settings)
