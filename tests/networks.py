"""Small networks of every family, with BatchNorms that have something to hide."""

import torch
from torch import nn

from rqlib import models
from rqlib.core import layers
from rqlib.core.vocabulary import ImageSpec

COLOR = ImageSpec()
IMAGE = torch.zeros(1, *COLOR.shape)
WIDTHS = {"SmallCNN": 1.0, "WRN_28_10": 0.05, "ResNet_152": 0.0625}


def narrow(name: str, seed: int = 0) -> nn.Module:
    """A narrow network in eval mode whose BatchNorms have random weights, biases and statistics."""
    model = models.build(name, COLOR, width=WIDTHS.get(name, 0.125), seed=seed).eval()
    for _, norm in layers.batchnorms(model):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return model
