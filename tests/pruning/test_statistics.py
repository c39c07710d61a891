"""After pruning, BatchNorm holds the statistics of the pruned network."""

import torch
from torch import nn
from torch.testing import assert_close

from rqlib import data
from rqlib.pruning import statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.01), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(4 * 36, 3)).train()


def test_statistics_are_those_of_the_images_and_all_else_stays():
    model, images = network(), torch.randint(256, (300, 3, 8, 8), dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    statistics.refresh(model, images)
    found = model[0](data.to_pixels(images))
    assert_close(model[1].running_mean, found.mean((0, 2, 3)))
    assert_close(model[1].running_var, found.var((0, 2, 3)), rtol=1e-2, atol=0)  # a mean of the variances of batches
    assert model[1].momentum == 0.01
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "num_batches" not in name)


def test_without_images_or_batchnorm_nothing_happens():
    model, plain = network(), nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    statistics.refresh(plain, torch.zeros(4, 3, 2, 2, dtype=torch.uint8))
    statistics.refresh(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert torch.equal(model[1].running_mean, torch.zeros(4))
