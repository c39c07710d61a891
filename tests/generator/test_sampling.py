import pytest
import torch

from rqlib import measures
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import mixtures, sampling
from rqlib.generator.network import Generator
from tests import generated


def small() -> Generator:
    torch.manual_seed(0)
    return Generator(torch.randn(10, 12), ImageSpec(3, 32, 32), channels=4)


def test_samples_are_seeded_balanced_and_independent_of_the_batch_size(monkeypatch):
    network = small().train()
    again = sampling.sample(network, 25, seed=3)
    monkeypatch.setattr(sampling, "BATCH", 7)
    made = sampling.sample(network, 25, seed=3)
    assert network.training
    assert made.images.dtype == torch.uint8
    assert made.images.shape == (25, 3, 32, 32)
    assert torch.equal(made.labels.bincount(), torch.tensor([3] * 5 + [2] * 5))
    assert (made.images.int() - again.images.int()).abs().max() <= 1
    assert not torch.equal(sampling.sample(network, 25, seed=4).images, again.images)
    with pytest.raises(ValueError, match="count >= 1, got 0"):
        sampling.sample(network, 0)


def test_images_are_classified_as_asked_and_may_lie_between_classes():
    made = sampling.sample(generated.trained(), 200)
    assert measures.accuracy(generated.teacher(), *made) >= 0.9
    mixture = mixtures.single(torch.tensor([1, 7]), 10).mean(0)
    between = sampling.images(generated.trained(), mixture.expand(5, -1), seed=1)
    assert between.shape == (5, 3, 32, 32)


def test_images_between_classes_are_labeled_by_the_teacher_and_less_sure():
    made = sampling.boundary(generated.trained(), generated.teacher(), 200, seed=3)
    again = sampling.boundary(generated.trained(), generated.teacher(), 200, seed=3)
    plain = sampling.sample(generated.trained(), 200, seed=3)
    confidence = [measures.logits(generated.teacher(), *one).softmax(1).amax(1).mean() for one in (made, plain)]
    assert measures.accuracy(generated.teacher(), *made) == 1
    assert torch.equal(made.images, again.images)
    assert confidence[0] < confidence[1]
