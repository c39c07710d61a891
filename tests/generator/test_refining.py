import pytest
import torch
from torch import nn

from rqlib import generator, measures
from rqlib.generator import batchnorm
from tests import generated


def start(count: int = 40) -> torch.Tensor:
    return generator.sample(generated.trained(), count).images


def test_refined_images_come_closer_to_the_statistics_of_the_training_images_the_longer_it_takes():
    teacher = generated.teacher("AlexNet_BN", 0.25)
    images = start()
    few, many = (generator.refine(images, teacher, passes=[passes]) for passes in (3, 20))
    near, nearer, far = (batchnorm.mean_distance(teacher, one) for one in (few, many, images))
    assert nearer < near < far
    assert nearer < far / 10
    assert many.dtype == torch.uint8
    assert many.shape == images.shape


def test_the_network_stays_as_it_is_and_the_images_that_are_given_too():
    teacher = generated.teacher("AlexNet_BN", 0.25)
    before, images = {name: one.clone() for name, one in teacher.state_dict().items()}, start()
    kept = images.clone()
    generator.refine(images, teacher, passes=[2])
    assert torch.equal(images, kept)
    assert all(torch.equal(one, before[name]) for name, one in teacher.state_dict().items())
    assert not teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_images_take_the_numbers_of_passes_in_turn():
    teacher, images = generated.teacher("AlexNet_BN", 0.25), start(20)
    mixed = generator.refine(images, teacher, passes=[1, 5])
    assert torch.equal(mixed[::2], generator.refine(images[::2], teacher, passes=[1]))
    assert torch.equal(mixed[1::2], generator.refine(images[1::2], teacher, passes=[5]))


def test_they_are_labeled_as_the_network_sees_them_and_seeded():
    teacher = generated.teacher("AlexNet_BN", 0.25)
    made, again = (generator.refined(generated.trained(), teacher, 40, seed=1) for _ in range(2))
    assert measures.accuracy(teacher, *made) == 1
    assert torch.equal(made.images, again.images)


class Auxiliary(nn.Module):
    """Its only BatchNorm is part of a head that is there in training alone."""

    def __init__(self):
        super().__init__()
        self.head, self.auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.head(self.auxiliary(x) if self.training else x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: generator.refine(start(), generated.teacher("CNN_small")), "that keep statistics, got one without"),
        (lambda: generator.refine(start(), generated.teacher("AlexNet_BN", 0.25), passes=[0]), r">= 1, got \[0\]"),
        (
            lambda: generator.refine(start(), Auxiliary().eval()),
            "expected a BatchNorm that images pass through, got none",
        ),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call()
