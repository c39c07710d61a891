"""A tiny network on the 8x8 digits, trained naturally or adversarially, once in a test run."""

import functools

import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import attacks, models
from rqlib.core import projections
from rqlib.core.vocabulary import ImageSpec
from rqlib.data.datasets import to_uint8

BALL = projections.Linf(0.1)
SPEC = ImageSpec(1, 8, 8, 10, mean=(0.3,), std=(0.375,))


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(train x, train y, test x, test y), pixels in [0, 1]."""
    bunch = sklearn.datasets.load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(bunch.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1500], y[:1500], x[1500:], y[1500:]


def images(count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` test images and their labels."""
    _, _, x, y = digits()
    return x[:count], y[:count]


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """The same images as uint8, and their labels."""
    x, y = images(count)
    return to_uint8(x), y


def untrained() -> nn.Module:
    """A fresh network with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build("CNN_small", SPEC).eval()


@functools.cache
def trained(*, adversarial: bool) -> nn.Module:
    """The network after a few seconds of training; the same object every time: do not change it."""
    model, (x, y, _, _) = untrained(), digits()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(12):
        for rows in torch.randperm(len(y), generator=rng).split(128):
            seen = x[rows]
            if adversarial:
                seen = attacks.pgd(model, seen, y[rows], ball=BALL, step_size=0.03, steps=7, rng=rng)
            loss = F.cross_entropy(model(seen), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


class Defended(nn.Module):
    """The naturally trained network behind something that hides its gradients: (network, x) -> logits."""

    def __init__(self, defense):
        super().__init__()
        self.network, self.defense = trained(adversarial=False), defense

    def forward(self, x):
        """(B, 1, 8, 8) -> logits (B, 10)."""
        return self.defense(self.network, x)


def random_resize(network: nn.Module, x: Tensor) -> Tensor:
    """Logits of images (B, 1, 8, 8) that are resized and padded at random, the same for the whole batch."""
    side = int(torch.randint(6, 9, ()))
    small = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    left, top = (int(torch.randint(0, 9 - side, ())) for _ in range(2))
    return network(F.pad(small, (left, 8 - side - left, top, 8 - side - top)))
