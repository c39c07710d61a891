"""Two networks of other makes, trained on digits by a plain loop of PyTorch; only their state dicts are kept."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import data
from rqlib.core import torchvision_guard

STRANGERS = {
    "torchvision": {"network": "torchvision:shufflenet_v2_x0_5"},
    "batchnorm_after_relu": {"network": "tests.notebooks.strangers:batchnorm_after_relu", "pixels": "0..255"},
}
"""Name -> the parameters that open it, without ``weights``."""

_PIXELS = {"torchvision": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "batchnorm_after_relu": ((0.0,), (1 / 255,))}
_EPOCHS, _BATCH = 5, 64


def batchnorm_after_relu(num_classes: int) -> nn.Module:
    """For gray levels from 0 to 255: convolution, ReLU, BatchNorm, four times; ReLU on the logits."""
    parts: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 16), (16, 24)):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Dropout(0.1), nn.Linear(24 * 2 * 2, num_classes), nn.ReLU())


def untrained(name: str) -> nn.Module:
    if name == "torchvision":
        return torchvision_guard.torchvision().models.shufflenet_v2_x0_5(num_classes=10)
    return batchnorm_after_relu(10)


def write(name: str, path: Path) -> None:
    """Train a network and write its state dict."""
    torch.manual_seed(0)
    network, images = untrained(name), data.load("digits")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in _PIXELS[name])
    _train(network, lambda x: (x - mean) / std, images.train)
    torch.save(network.state_dict(), path)


def _train(network: nn.Module, prepare, split: data.Split) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(_EPOCHS):
        for x, y in data.batches(*split, _BATCH, shuffle=True, rng=rng):
            loss: Tensor = F.cross_entropy(network(prepare(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
