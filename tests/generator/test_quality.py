import numpy
import pytest
import scipy.linalg
import torch

from rqlib import data, generator, models
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import quality
from tests import generated


def test_frechet_distance_is_the_formula():
    torch.manual_seed(0)
    x, y = torch.randn(300, 6) @ torch.randn(6, 6), torch.randn(200, 6) + 1
    a, b = (numpy.cov(values.double().numpy(), rowvar=False) for values in (x, y))
    shift = ((x.double().mean(0) - y.double().mean(0)) ** 2).sum().item()
    expected = shift + numpy.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert quality.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert quality.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert quality.frechet_distance(x, x + 2) == pytest.approx(24, rel=1e-5)


def test_collapse_and_clipping_are_seen():
    same = torch.full((5, 3, 4, 4), 7, dtype=torch.uint8)
    assert quality.nearest_distance(same) == 0
    two = torch.cat([same, torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)])
    far = 48**0.5 * (248 / 255)
    assert quality.nearest_distance(two) == pytest.approx(far / 6, rel=1e-4)
    assert quality.clipped(two) == pytest.approx(1 / 6)


def test_noise_has_the_mean_and_spread_of_the_images():
    spec = ImageSpec(2, 16, 16, mean=(0.4, 0.6), std=(0.05, 0.1))
    x = quality.noise(spec, 200).double() / 255
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0.4, 0.6], abs=0.005)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([0.05, 0.1], rel=0.05)


def test_good_images_are_told_from_noise():
    digits, made = data.load("digits"), generator.sample(generated.trained(), 100)
    sets = {"good": made, "noise": data.Split(quality.noise(digits.spec, 100), made.labels)}
    found = quality.assess(generated.teacher(), sets, digits.spec, digits.test.take(100)).set_index("generator")
    good, noise = found.loc["good"], found.loc["noise"]
    assert good.class_accuracy > 0.9
    assert noise.class_accuracy < 0.4
    assert good.batchnorm_distance < 0.2 * good.noise_batchnorm_distance
    assert noise.batchnorm_distance == pytest.approx(noise.noise_batchnorm_distance)
    assert good.nearest_distance > good.real_nearest_distance / 5
    assert good.frechet_distance < noise.frechet_distance


def test_a_generator_that_has_not_learned_is_doubted():
    assert quality.doubt(0.96, 10) == ""
    assert "classifies 28% of its images as asked, expected 95.0%. Train it for more" in quality.doubt(0.282, 10)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_generator_that_misses_one_class_is_doubted(num_classes):
    assert quality.doubt(1 - 1 / num_classes, num_classes)
    assert not quality.doubt(1.0, num_classes)


def test_a_network_without_batchnorm_has_no_distance():
    spec = ImageSpec(1, 28, 28, mean=(0.5,), std=(0.5,))
    network = models.build("CNN_small", spec, width=0.2).eval()
    made = data.Split(quality.noise(spec, 20), torch.arange(20) % 10)
    row = quality.report(network, made, spec)
    assert row["batchnorm_distance"] is row["noise_batchnorm_distance"] is None
    assert "frechet_distance" not in row, "no real images"
