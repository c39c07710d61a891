import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlib import models
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator.network import Generator, build, load, sample, save, single, superposed


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def small(shape=(3, 32, 32), classes: int = 10, width: int = 12) -> Generator:
    torch.manual_seed(0)
    spec = ImageSpec(*shape, classes, mean=(0.4,) * shape[0], std=(0.2,) * shape[0])
    return Generator(torch.randn(classes, width), spec, channels=4)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224), (1, 8, 8), (3, 20, 30)])
def test_images_of_every_size_lie_in_the_unit_interval(shape):
    network = small(shape)
    with torch.no_grad():
        x = network(single(torch.arange(10), 10), torch.randn(10, 12))
    assert x.shape == (10, *shape)
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1
    assert max(network.small[1:]) <= 8
    assert math.isclose(x.mean().item(), 0.4, abs_tol=0.05), "in train mode images have the mean of the real ones"


def test_the_embedding_starts_as_the_teachers_last_weight_standardized():
    spec = ImageSpec()
    teacher = models.build("SmallCNN", spec)
    built = build(teacher, spec, channels=4)
    weight = teacher.classifier[-1].weight.detach()
    expected = (weight - weight.mean(1, keepdim=True)) / weight.std(1, correction=0, keepdim=True)
    assert torch.allclose(built.embedding, expected, atol=1e-2)
    again = build(teacher, spec, channels=4)
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), again.state_dict().values(), strict=True))


@given(count=st.integers(1, 50), classes=st.integers(2, 120), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_superposed_labels_are_mixtures(count, classes, seed):
    mixtures = superposed(count, classes, runtime.rng(seed))
    assert mixtures.shape == (count, classes)
    assert torch.allclose(mixtures.sum(1), torch.ones(count), atol=1e-5)
    assert (mixtures >= 0).all()
    assert (mixtures > 0).sum(1).max() <= max(2, classes // 10)


def test_members_of_a_mixture_are_drawn_with_replacement():
    mixtures = superposed(2000, 10, runtime.rng(0))
    alone = (mixtures.amax(1) == 1).float().mean().item()
    assert alone == pytest.approx(0.1, abs=0.03)
    many = superposed(500, 10, runtime.rng(0), members=5)
    assert (many > 0).sum(1).max() == 5


def test_samples_are_seeded_balanced_and_independent_of_the_batch_size():
    network = small().train()
    made = sample(network, 25, seed=3, batch_size=7)
    assert network.training
    assert made.images.dtype == torch.uint8
    assert made.images.shape == (25, 3, 32, 32)
    assert torch.equal(made.labels.bincount(), torch.tensor([3] * 5 + [2] * 5))
    again = sample(network, 25, seed=3)
    assert (made.images.int() - again.images.int()).abs().max() <= 1
    assert not torch.equal(sample(network, 25, seed=4).images, again.images)


def test_a_generator_survives_its_file(tmp_path):
    network = small((1, 28, 28))
    network.expand.weight.data += 1
    loaded = load(save(tmp_path / "g.pt", network))
    assert torch.equal(sample(loaded, 10).images, sample(network, 10).images)
    torch.save({"state": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a generator, found no channels, spec"):
        load(tmp_path / "other.pt")


def test_bad_input():
    with pytest.raises(ValueError, match="count >= 1, got 0"):
        sample(small(), 0)
    with pytest.raises(ValueError, match="at least 2 channels"):
        Generator(torch.randn(10, 3), ImageSpec(), channels=1)
    teacher = models.build("SmallCNN", ImageSpec())
    with pytest.raises(ValueError, match="do not fit the network"):
        build(teacher, ImageSpec(3, 64, 64))
