import torch

from rqlib import data, evaluate, generator, runtime
from tests import generated


def test_the_whole_way_from_a_network_to_images():
    with runtime.using("cpu", "float32"):
        made = generator.sample(generated.trained(), 200)
        assert evaluate.accuracy(generated.teacher(), *made) >= 0.9
        assert made.images.shape[1:] == data.load("digits").spec.shape
        mixture = (generator.single(torch.tensor([1]), 10) + generator.single(torch.tensor([7]), 10)) / 2
        between = generator.images(generated.trained(), mixture.expand(5, -1), seed=1)
    assert between.shape == (5, 3, 32, 32)


def test_images_between_classes_are_labeled_by_the_teacher_and_less_sure():
    with runtime.using("cpu", "float32"):
        made = generator.boundary(generated.trained(), generated.teacher(), 200, seed=3)
        again = generator.boundary(generated.trained(), generated.teacher(), 200, seed=3)
        plain = generator.sample(generated.trained(), 200, seed=3)
        confidence = [evaluate.logits(generated.teacher(), *one).softmax(1).amax(1).mean() for one in (made, plain)]
        assert evaluate.accuracy(generated.teacher(), *made) == 1
    assert torch.equal(made.images, again.images)
    assert confidence[0] < confidence[1]


def test_public_names():
    assert {"build", "fit", "adjust", "sample", "target", "save", "load"} <= set(generator.__all__)
    assert all(hasattr(generator, name) for name in generator.__all__)
