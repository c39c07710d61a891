"""How far several networks stretch a change of the image: what is guaranteed of them, beside what was measured."""

import math
import warnings
from collections.abc import Mapping
from functools import partial

import pandas
import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import defenses
from rqlib.core import runtime


def stretched(networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, **options) -> DataFrame:
    """The ratios of each network beside their bounds: the tables of `defenses.ratios`, with the column variant.

    A network whose bound is not known is left out; one warning names them.

    Args:
        networks: name -> network.
        x, y: images (B, C, H, W) in [0, 1], and labels (B,).
        options: of `defenses.ratios`.

    Raises:
        AssertionError: a ratio is larger than its bound.
    """
    found = _of_each(networks, partial(_ratios, x=x, y=y, options=options))
    table = pandas.concat(found, ignore_index=True) if found else DataFrame(columns=["variant", "used"])
    wrong = table[table.used > 1 + 1e-4]
    assert wrong.empty, f"a bound lies below a measured ratio: {wrong.to_dict('records')}"
    return table


def guaranteed(networks: Mapping[str, nn.Module], x: Tensor, y: Tensor) -> DataFrame:
    """What the bounds guarantee: one row per network.

    The columns: variant, constant and offset of its affine bound (`defenses.lipschitz`), median_radius (l2, in pixels,
    over the images that are right: inside it no image is classified differently), median_255 (the L-infinity radius
    that this covers, in gray levels of 255), certified (share of all images whose radius is above 0).

    Args:
        networks, x, y: as `stretched`, which says what is left out.
    """
    return DataFrame(_of_each(networks, partial(_guarantee, x=x, y=y)))


def norms_of_layers(networks: Mapping[str, nn.Module], image_shape: tuple[int, ...]) -> DataFrame:
    """The operator norms of the layers (`defenses.layer_norms`): one row per layer, one column per network.

    Each entry reads ``1.31 to 1.36``: an estimate from below, and a bound that holds. A network that torch.fx cannot
    trace is left out; one warning names them.
    """
    return DataFrame(dict(_of_each(networks, partial(_norms, image_shape=image_shape))))


def _norms(name: str, network: nn.Module, image_shape: tuple[int, ...]) -> tuple[str, pandas.Series]:
    found = defenses.layer_norms(network, image_shape).set_index("layer")
    return name, found.apply(lambda row: f"{row.estimate:.2f} to {row.bound:.2f}", axis=1)


def _ratios(name: str, network: nn.Module, x: Tensor, y: Tensor, options: dict) -> DataFrame:
    return defenses.ratios(network, x, y, **options).assign(variant=name)


def _guarantee(name: str, network: nn.Module, x: Tensor, y: Tensor) -> dict:
    *_, logits = defenses.lipschitz(network, tuple(x.shape[1:])).to_dict("records")
    radii = defenses.certified_radius(network, x, y).cpu()
    with runtime.evaluating(network), torch.no_grad():
        right = (network(x).argmax(1) == y).cpu()
    median = radii[right].median().item() if right.any() else 0.0
    return {
        "variant": name,
        "constant": logits["constant"],
        "offset": logits["offset"],
        "median_radius": median,
        "median_255": 255 * median / math.sqrt(x[0].numel()),
        "certified": (radii > 0).double().mean().item(),
    }


def _of_each(networks: Mapping[str, nn.Module], function) -> list:
    """function(name, network) of every network with a known bound; a warning names the others, and why."""
    found, left_out = [], {}
    with runtime.exact():
        for name, network in networks.items():
            try:
                found.append(function(name, network))
            except (ValueError, torch.linalg.LinAlgError) as error:
                left_out[name] = str(error).split(";")[0]
    if left_out:
        warnings.warn(f"no bound is known of: {left_out}", stacklevel=3)
    return found
