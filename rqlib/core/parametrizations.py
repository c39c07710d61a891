"""Parametrizations: functions between a layer's stored tensor and the one that it computes with.

They are those of ``torch.nn.utils.parametrize``; quantization and pruning use them to change weights.
"""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize


def steps_of(model: nn.Module, kind: type) -> dict[str, nn.Module]:
    """Every parametrization of one kind in a model, by the name of its tensor (``features.0.weight``)."""
    return {
        f"{name}.{tensor}".lstrip("."): step
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for tensor, steps in module.parametrizations.items()
        for step in steps
        if isinstance(step, kind)
    }


def bake(model: nn.Module) -> nn.Module:
    """A copy with plain weights, equal to those that the model computes with; its state dict fits the plain model.

    A weight of the copy is trainable if any tensor that it was computed from is trainable.
    """
    baked = copy.deepcopy(model)
    for module in list(baked.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
    return baked


@torch.no_grad()
def _bake(module: nn.Module) -> None:
    """Replace the parametrized tensors of one module by plain ones, in place."""
    # Not by parametrize.remove_parametrizations: copies share one class, so the original would lose its weight too.
    steps = module.parametrizations
    trainable = {name: any(parameter.requires_grad for parameter in steps[name].parameters()) for name in steps}
    values = {name: getattr(module, name).clone() for name in steps}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trainable[name]))
