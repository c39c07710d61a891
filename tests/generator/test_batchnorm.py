import pytest
import torch
from torch import nn

from rqlib import models
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import batchnorm

SPEC = ImageSpec(3, 16, 16, 10)


def test_distance_by_hand():
    norm = nn.BatchNorm1d(2).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0]))
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # means 1, 2; biased variances 1, 4
    assert batchnorm.distance(norm, x).item() == pytest.approx((0 + 4) / 2 + 0)


@pytest.mark.parametrize(("largest", "unit"), [(1, 1), (10, 1), (12, 12), (255, 255**2 / 12)])
def test_signals_of_large_variance_are_measured_in_units_of_it(largest, unit):
    """Uniform noise from 0 to c has mean c / 2 and variance c^2 / 12; the other images are noise from 0 to c / 2."""
    torch.manual_seed(0)
    images, others = largest * torch.rand(2, 200, 3, 8, 8)
    norm = nn.BatchNorm2d(3, momentum=None)
    norm(images)  # keeps their mean and variance
    expected = (largest / 4) ** 2 / unit + (largest**2 / 16 / unit) ** 2
    assert batchnorm.distance(norm.eval(), others / 2).item() == pytest.approx(expected, rel=0.03)


def test_the_statistics_that_a_norm_has_kept_are_at_distance_zero():
    torch.manual_seed(0)
    images = torch.rand(64, *SPEC.shape)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=None), nn.Flatten(), nn.Linear(980, 10))
    model.train()(images)  # keeps the mean, and the unbiased variance
    model.eval()
    assert batchnorm.mean_distance(model, images) < 1e-6
    assert batchnorm.mean_distance(model, images.flip(0) * 0.5) > 1e-3


def test_the_distance_can_be_descended():
    torch.manual_seed(0)
    model = models.build("ResNet_18", SPEC, width=0.07).eval()
    x = torch.rand(8, *SPEC.shape, requires_grad=True)
    with batchnorm.watching(model) as found:
        model(x)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(found) == len(norms)
    (gradient,) = torch.autograd.grad(torch.stack(found).mean(), x)
    assert gradient.abs().sum() > 0


def test_only_norms_with_running_statistics_are_watched():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)).eval()
    assert list(batchnorm.keeping(model)) == ["1"]
    with batchnorm.watching(model) as found:
        model(torch.rand(2, 3, 4, 4))
    assert len(found) == 1
