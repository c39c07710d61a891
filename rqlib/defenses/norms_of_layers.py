"""The operator norm of every layer of a network, between an estimate from below and a bound that holds."""

import pandas
import torch
from torch import nn

from rqlib.core import derived, layers, runtime
from rqlib.defenses import spectra
from rqlib.defenses.noise import SelfEnsemble


@torch.no_grad()
def layer_norms(model: nn.Module, image_shape: tuple[int, ...]) -> pandas.DataFrame:
    """One row per convolution and linear layer, with BatchNorm folded in: layer, input_shape, estimate, bound.

    Args:
        model: pixels to logits; of a random self-ensemble the network inside it counts, whose noise changes no norm.
        image_shape: (C, H, W).

    Returns:
        estimate (`spectra.operator_norm`) is never above the norm, bound (`spectra.norm_bound`) never below it.

    Raises:
        ValueError: torch.fx cannot trace the network.
    """
    model = model.network if isinstance(model, SelfEnsemble) else model
    images = torch.rand(2, *image_shape, generator=runtime.rng(0)).to(next(model.parameters()))
    network = derived.folded(model, images)
    weighted, shapes = dict(layers.weighted_layers(network)), {}
    with (
        runtime.evaluating(network),
        layers.watching(network, weighted, lambda name, inputs, _: shapes.setdefault(name, tuple(inputs[0].shape[1:]))),
    ):
        network(images)
    rows = [
        (name, shape, spectra.operator_norm(weighted[name], shape), spectra.norm_bound(weighted[name], shape))
        for name, shape in shapes.items()
    ]
    return pandas.DataFrame(rows, columns=["layer", "input_shape", "estimate", "bound"])
