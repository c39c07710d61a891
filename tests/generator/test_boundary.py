import torch

from rqlib import data, measures
from rqlib.core import runtime
from rqlib.generator import network
from tests import generated


def test_the_whole_way_from_a_network_to_images():
    with runtime.using("cpu", "float32"):
        made = network.sample(generated.trained(), 200)
        assert measures.accuracy(generated.teacher(), *made) >= 0.9
        assert made.images.shape[1:] == data.load("digits").spec.shape
        mixture = (network.single(torch.tensor([1]), 10) + network.single(torch.tensor([7]), 10)) / 2
        between = network.images(generated.trained(), mixture.expand(5, -1), seed=1)
    assert between.shape == (5, 3, 32, 32)


def test_images_between_classes_are_labeled_by_the_teacher_and_less_sure():
    with runtime.using("cpu", "float32"):
        made = network.boundary(generated.trained(), generated.teacher(), 200, seed=3)
        again = network.boundary(generated.trained(), generated.teacher(), 200, seed=3)
        plain = network.sample(generated.trained(), 200, seed=3)
        confidence = [measures.logits(generated.teacher(), *one).softmax(1).amax(1).mean() for one in (made, plain)]
        assert measures.accuracy(generated.teacher(), *made) == 1
    assert torch.equal(made.images, again.images)
    assert confidence[0] < confidence[1]
