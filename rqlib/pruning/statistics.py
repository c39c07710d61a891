"""BatchNorm after pruning: its statistics are those of the network before, and the first attacks would meet them."""

import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import layers, runtime

MOST_IMAGES = 1024
_BATCH = 256


@torch.no_grad()
def refresh(model: nn.Module, images: Tensor) -> None:
    """Let every BatchNorm hold the mean and variance of its inputs over images, in place; all else stays.

    A BatchNorm that moves slowly (torchvision's MobileNetV3: by a hundredth per batch) would need hundreds of batches
    to forget the network before pruning. Until then the network in eval mode, in which it is attacked, computes
    something else than the one that is trained, and may overflow.

    Args:
        images: plain training images, uint8 (N, C, H, W), of which the first 1,024 are used, in batches of 256.
    """
    moving = [norm for _, norm in layers.batchnorms(model) if norm.track_running_stats]
    chosen = images[:MOST_IMAGES]
    if not moving or len(chosen) < 2:
        return
    before = [norm.momentum for norm in moving]
    with runtime.evaluating(model):
        for norm in moving:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for batch in chosen.tensor_split(-(-len(chosen) // _BATCH)):
            model(runtime.active().place(data.to_pixels(batch)))
    for norm, momentum in zip(moving, before, strict=True):
        norm.momentum = momentum
