"""What stands between a layer's stored tensor and the one it computes with (``torch.nn.utils.parametrize``)."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize


def steps_of(model: nn.Module, kind: type) -> dict[str, nn.Module]:
    """Name of each tensor (``features.0.weight``) -> the parametrization of that kind that it passes."""
    return {
        f"{name}.{tensor}".lstrip("."): step
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for tensor, steps in module.parametrizations.items()
        for step in steps
        if isinstance(step, kind)
    }


def bake(model: nn.Module) -> nn.Module:
    """A copy whose weights are the effective ones, plain and trainable as before; its state dict fits the plain model.

    A weight is trainable if a stored tensor or anything it is computed from was.
    """
    baked = copy.deepcopy(model)
    for module in list(baked.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
    return baked


@torch.no_grad()
def _bake(module: nn.Module) -> None:
    """Not by ``remove_parametrizations``: copies share a class, and it would take the weight from the original too."""
    steps = module.parametrizations
    trainable = {name: any(parameter.requires_grad for parameter in steps[name].parameters()) for name in steps}
    values = {name: getattr(module, name).clone() for name in steps}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trainable[name]))
