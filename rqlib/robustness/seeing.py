"""What networks see of an image: the output of the last convolution that all of them have."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import layers, runtime
from rqlib.defenses.noise import SelfEnsemble


@torch.no_grad()
def convolution_outputs(networks: Mapping[str, nn.Module], image: Tensor) -> dict[str, Tensor]:
    """Title -> output (C, H, W) of the last convolution that all networks have by the same name, for one image.

    Of a random self-ensemble it is that of one draw.

    Args:
        networks: title -> network; they are placed on the active device.
        image: uint8 (C, H, W).

    Raises:
        ValueError: the networks have no convolution in common.
    """
    plain = {title: one.network if isinstance(one, SelfEnsemble) else one for title, one in networks.items()}
    names = [_convolutions(one) for one in plain.values()]
    common = [name for name in names[0] if all(name in others for others in names)] if names else []
    if not common:
        raise ValueError(f"expected networks with a convolution of the same name, got {', '.join(networks) or 'none'}")
    x, found = runtime.active().place(data.to_pixels(image[None])), {}
    for title, network in plain.items():
        whole = networks[title]
        seen = whole.pixels(x) if isinstance(whole, SelfEnsemble) else x
        with runtime.evaluating(runtime.active().place(network)):
            found[title] = layers.outputs(network, common[-1:], seen)[common[-1]][0].float().cpu()
    return found


def _convolutions(network: nn.Module) -> list[str]:
    """Names of the convolutions of a network, in order."""
    return [name for name, layer in layers.weighted_layers(network) if isinstance(layer, layers.CONVOLUTIONS)]
