"""Networks and helpers that several tests of quantization share."""

import pandas
import torch
from torch import nn

from rqlib import models, quantization
from rqlib.core import layers
from rqlib.core.vocabulary import ImageSpec


def images(count=8, channels=3, size=32, seed=0):
    """Smooth random pictures, uint8."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=rng)
    return (nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def network(name="ResNet_18", width=0.125):
    """An untrained network in eval mode. Its BatchNorms have statistics of pictures and random affine parameters."""
    torch.manual_seed(0)
    model = models.build(name, ImageSpec(), width=width)
    for _, norm in layers.batchnorms(model):
        norm.momentum = None  # the average of all batches
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.7, 1.3)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    model.train()
    with torch.no_grad():
        model(images(16).float() / 255)
    return model.eval()


def small():
    """A network of a few layers, pictures and labels, for what does not need a trained network."""
    return network("SmallCNN", 1.0), images(12), torch.arange(12) % 10


def levels_of(format, scale, values):
    """The index of the level nearest to each value, and the distance between the two in units of the scale."""
    levels = format.levels.double()
    unscaled = values.double().contiguous() / scale.double()
    index = torch.bucketize(unscaled, (levels[1:] + levels[:-1]) / 2)
    return index, (levels[index] - unscaled).abs()


def made_up_sweep():
    """A few rows as `quantization.sweep` gives them, with accuracies of our own."""
    columns = ("kind", "bits", "exponent_bits", "duplicate_of")
    accuracies = {"INT_2": 0.2, "INT_8": 0.9, "POT_4": 0.6, "FLOAT_8_E4": 0.92, "FLOAT_8_E1": 0.9, "FLOAT_6_E4": 0.7}
    rows = []
    for name, accuracy in accuracies.items():
        format = quantization.parse(name)
        described = {column: getattr(format, column) for column in columns}
        scores = {"accuracy": accuracy, "float_accuracy": 0.93, "coded_bits": 8192 * format.bits}
        rows.append({"format": name, **described, **scores})
    return pandas.DataFrame(rows)
