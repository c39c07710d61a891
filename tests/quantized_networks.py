"""Networks and helpers that several tests of quantization share."""

import torch
from torch import nn

from rqlib import models
from rqlib.core.vocabulary import ImageSpec

COLOR = ImageSpec()


def images(count=8, channels=3, size=32, seed=0):
    """Smooth random pictures, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    return (nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def network(name="ResNet_18", width=0.125, **options):
    """A network in eval mode whose BatchNorm statistics are those of pictures and whose affine part is not trivial."""
    torch.manual_seed(0)
    model = models.build(name, COLOR, width=width, **options)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # the average of all batches
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.7, 1.3)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    model.train()
    with torch.no_grad():
        model(images(16).float() / 255)
    return model.eval()


def levels_of(format, scale, values):
    """Index of the level that each value lies on, and how far it is from it in units of the scale."""
    levels = format.levels.double()
    unscaled = values.double().contiguous() / scale.double()
    index = torch.bucketize(unscaled, (levels[1:] + levels[:-1]) / 2)
    return index, (levels[index] - unscaled).abs()
