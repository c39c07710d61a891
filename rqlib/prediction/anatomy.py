"""What a network is built of, as far as its weights alone say: plain features that tell unlike networks apart."""

import functools

import torch
from pandas import DataFrame
from torch import nn

from rqlib import models
from rqlib.core import layers, parametrizations
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost

COUNTS = ("weighted_layers", "weight_count")
SHARES = ("batchnorm_share", "unfolded_share", "depthwise_share")
PLAIN = (*COUNTS, *SHARES)
"""Columns of `plain_features`."""


def plain_features(model: nn.Module) -> dict[str, float]:
    """Plain features of a network, none of which needs an image.

    - weighted_layers: number of convolutions and linear layers, the depth;
    - weight_count: number of their weights;
    - batchnorm_share: number of BatchNorms divided by that of weighted layers;
    - unfolded_share: share of the BatchNorms that cannot be folded into a layer before them, for example those after
      an activation; None if torch.fx cannot trace the network, 0 if there is none;
    - depthwise_share: share of the weighted layers that convolve each channel alone.
    """
    network = parametrizations.bake(model)
    weighted = [layer for _, layer in layers.weighted_layers(network)]
    count = max(len(weighted), 1)
    depthwise = sum(1 < getattr(layer, "groups", 1) == layer.in_channels for layer in weighted)
    norms, unfolded = len([*layers.batchnorms(network)]), _unfolded(network)
    return {
        "weighted_layers": len(weighted),
        "weight_count": cost.weight_count(network),
        "batchnorm_share": norms / count,
        "unfolded_share": None if unfolded is None else unfolded / max(norms, 1),
        "depthwise_share": depthwise / count,
    }


def _unfolded(network: nn.Module) -> int | None:
    """Number of BatchNorms that stay when BatchNorm is folded; None if torch.fx cannot trace the network."""
    try:
        return len([*layers.batchnorms(layers.fold_batchnorm(network))])
    except ValueError:
        return None


def completed(frame: DataFrame) -> DataFrame:
    """A table with the plain features of its networks, as far as they can be known.

    Columns that the rows have are kept. Others are filled in for the library's own networks and torchvision's, which
    are built for it by name and ``width`` (1 if the rows do not say it); the number of weights also follows from
    ``coded_bits``. A feature that is known of no network gets no column.
    """
    if {"coded_bits", "bits"} <= set(frame) and "weight_count" not in frame:
        frame = frame.assign(weight_count=frame.coded_bits / frame.bits)
    widths = frame.width.fillna(1.0) if "width" in frame else [1.0] * len(frame)
    known = frame[[name for name in PLAIN if name in frame]].notna().all(axis=1) & set(PLAIN).issubset(frame)
    keys = zip(frame.model, widths, known, strict=True)
    found = DataFrame([{} if has_all else _built(name, width) for name, width, has_all in keys], frame.index)
    for name in (name for name in PLAIN if name in found and found[name].notna().any()):
        frame = frame.assign(**{name: frame[name].fillna(found[name]) if name in frame else found[name]})
    return frame


@functools.cache
def _built(name: str, width: float) -> dict[str, float]:
    """The features of a network by name; empty where it cannot be built."""
    if name not in models.MODELS and not name.startswith("torchvision:"):
        return {}
    try:
        with torch.device("meta" if name in models.MODELS else "cpu"):  # torchvision's need values
            return plain_features(models.build(name, ImageSpec(), width=width))
    except ValueError:
        return {}
