"""A network with defenses built in: other activations, weights rounded in training, noise. `defend` adds them."""

import copy
import warnings
from collections import Counter
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from rqlib.core import layers
from rqlib.defenses import activations, noise, quantized_weights
from rqlib.models import checkpoints

PLAIN = {"activation": "relu", "weight_format": "none", "noise_std": 0.0}
"""The settings that change nothing."""

_OTHERS = (nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.GELU, nn.Mish)
_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")


def defend(
    model: nn.Module,
    *,
    activation: str = "relu",
    weight_format: str = "none",
    noise_std: float = 0.0,
    changes: Mapping[str, dict] | None = None,
) -> nn.Module:
    """A copy of a network with these defenses, to be trained with them.

    Args:
        activation: what every ReLU becomes, such as ``DTReLU_4`` (`activations.parse`). A ReLU that is called in
            several places keeps one range for all of them.
        weight_format: how the weights of all convolution and linear layers are rounded at every step, such as
            ``range_8`` (`quantized_weights.parse`); `core.parametrizations.bake` makes the rounded weights plain.
        noise_std: of the noise on the pixels, in pixels of [0, 1], and half of it before the other convolutions; above
            0 the network becomes a random self-ensemble (`noise.add_noise`).
        changes: what the network's checkpoint says of it (`models.load`). If it has these defenses already, only the
            rounding of weights is added again.

    Raises:
        ValueError: unknown name; another activation for a network without ReLU modules; as `noise.add_noise`; the
            network has other defenses already.
    """
    if has := _differing((changes or {}).get("defended", PLAIN)):
        _check_same(has, {"activation": activation, "weight_format": weight_format, "noise_std": noise_std})
        activation, noise_std = PLAIN["activation"], PLAIN["noise_std"]
    made = None if activation == "relu" else activations.parse(activation)
    rounding = None if weight_format == "none" else quantized_weights.parse(weight_format)
    defended = copy.deepcopy(model)
    if made is not None:
        _replace_relus(defended, made)
    if rounding is not None:
        for _, layer in layers.weighted_layers(defended):
            parametrize.register_parametrization(layer, "weight", rounding(layer))
    return defended if noise_std == 0 else noise.add_noise(defended, noise_std)


def _differing(settings: Mapping) -> dict:
    """The settings that change something."""
    return {name: value for name, value in settings.items() if value != PLAIN.get(name)}


def _check_same(has: dict, wanted: dict) -> None:
    if has != _differing(wanted):
        raise ValueError(
            f"expected the defenses that the network has already, {has}, got {_differing(wanted) or 'none'}; give "
            "these, or begin with the weights of a network without defenses"
        )


def _rebuilt(model: nn.Module, settings: dict) -> nn.Module:
    """The network of a checkpoint: as `defend`, but for the weights, which the file holds already rounded."""
    return defend(model, **settings | {"weight_format": "none"})


checkpoints.CHANGES["defended"] = _rebuilt


def _replace_relus(model: nn.Module, make) -> None:
    """Put another activation in the place of every ReLU module; the same one wherever the same module stood."""
    _say_what_stays(model)
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.ReLU:
                setattr(parent, name, made.setdefault(child, make().train(child.training)))
    if not made:
        raise ValueError(
            f"expected a network with nn.ReLU modules to replace, got {type(model).__name__} without any; "
            "choose activation='relu'"
        )


def _say_what_stays(model: nn.Module) -> None:
    """Warn of activations that are not replaced: ReLUs that are functions, and modules of other kinds."""
    try:
        graph: fx.Graph | None = layers.trace(model)
    except ValueError:
        graph = None
    nodes = [] if graph is None else graph.nodes
    stay = [node.name for node in nodes if node.op.startswith("call_") and node.target in _FUNCTIONS]
    if stay:
        warnings.warn(
            f"{len(stay)} ReLUs that are functions, not modules, stay as they are ({', '.join(stay[:5])}); "
            "write them as nn.ReLU to replace them",
            stacklevel=4,
        )
    others = Counter(type(module).__name__ for module in model.modules() if isinstance(module, _OTHERS))
    if others:
        found = ", ".join(f"{count} {name}" for name, count in others.items())
        warnings.warn(f"activations of other kinds than nn.ReLU stay as they are: {found}", stacklevel=4)
