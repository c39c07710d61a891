import math

import pytest
import torch

from rqlib import models
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator.mixtures import single
from rqlib.generator.network import Generator, build, load, save


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


def test_a_generator_survives_its_file(tmp_path):
    network = small((1, 28, 28))
    network.expand.weight.data += 1
    loaded = load(save(tmp_path / "g.pt", network))
    assert not loaded.training
    assert loaded.spec == network.spec
    inputs = single(torch.arange(10), 10), torch.randn(10, 12)
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), network.eval()(*inputs))


def foreign(folder):
    torch.save({"state": {}}, folder / "other.pt")
    return folder / "other.pt"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda folder: Generator(torch.randn(10, 3), ImageSpec(), channels=1), "at least 2 channels, got 1"),
        (lambda folder: build(models.build("SmallCNN", ImageSpec()), ImageSpec(3, 64, 64)), "do not fit the network"),
        (lambda folder: load(foreign(folder)), "expected a generator, found no channels, spec"),
    ],
)
def test_errors(tmp_path, call, words):
    with pytest.raises(ValueError, match=words):
        call(tmp_path)
