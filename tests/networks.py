"""Small networks of every family, with BatchNorms that have something to hide."""

import torch
from torch import nn

from rqlib import models
from rqlib.core.vocabulary import ImageSpec

COLOR = ImageSpec()
IMAGE = torch.zeros(1, *COLOR.shape)
WIDTHS = {"SmallCNN": 1.0, "WRN_28_10": 0.05, "ResNet_152": 0.0625}


def narrow(name: str, seed: int = 0) -> nn.Module:
    """A narrow network in eval mode whose BatchNorms have random weights, biases and statistics."""
    torch.manual_seed(seed)
    model = models.build(name, COLOR, width=WIDTHS.get(name, 0.125)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model
