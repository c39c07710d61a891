"""How far images are from the statistics that the BatchNorms of a network have kept of its training images."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import data
from rqlib.core import layers, runtime

BATCH = 250
"""Number of images in a batch of `mean_distance`."""

LARGE_VARIANCE = 10.0
"""A BatchNorm whose running variances have a larger mean is measured in units of that mean."""


def keeping(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> BatchNorm, of those that keep running statistics."""
    return {name: norm for name, norm in layers.batchnorms(model) if norm.running_mean is not None}


def distance(norm: nn.Module, x: Tensor) -> Tensor:
    """``MSE(batch mean, running mean) / u + MSE(biased batch variance, running variance) / u^2``.

    Both are means over channels; x (B, C, ...) is the input of a BatchNorm with running statistics. u is 1 as in GDFQ
    (arXiv 2003.03603), or the mean of the running variances if that exceeds `LARGE_VARIANCE`. Layers behind pixels from
    0 to 255, or behind sums of many residual blocks, have variances of thousands; with u = 1 they would outweigh all
    other layers and the classes.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = x.movedim(1, -1).flatten(0, -2).float()  # (B H W, C)
        weights = rows.new_full((1, len(rows)), 1 / len(rows))
        mean = weights @ rows  # a sum as a product: twice as fast as torch.var_mean, which walks channels
        variance = weights @ (rows - mean).square()
    usual = norm.running_var.mean()
    unit = torch.where(usual > LARGE_VARIANCE, usual, 1.0)
    mean_apart, variance_apart = F.mse_loss(mean[0], norm.running_mean), F.mse_loss(variance[0], norm.running_var)
    return mean_apart / unit + variance_apart / unit.square()


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[list[Tensor]]:
    """While the block runs, every call of a BatchNorm appends its `distance` to the list that the block is given."""
    found: list[Tensor] = []
    norms = keeping(model)
    with layers.watching(model, norms, lambda name, inputs, output: found.append(distance(norms[name], inputs[0]))):
        yield found


@torch.no_grad()
def mean_distance(model: nn.Module, images: Tensor) -> float | None:
    """The distance of images (N, C, H, W), mean over BatchNorms and batches; None for a network without BatchNorm.

    Small batches lie farther from the statistics than large ones, so compare only sets of the same size.
    """
    policy = runtime.active()
    with runtime.evaluating(policy.place(model)), watching(model) as found, policy.autocast():
        for x, _ in data.batches(images, torch.zeros(len(images)), BATCH):
            model(x)
    return torch.stack(found).mean().item() if found else None
