"""Weights that are computed from other tensors: listed, and replaced by their values.

Two kinds: parametrizations (``torch.nn.utils.parametrize``), by which quantization and pruning change weights, and
the older hooks of ``weight_norm``, ``spectral_norm`` and ``torch.nn.utils.prune``.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm


def steps_of(model: nn.Module, kind: type) -> dict[str, nn.Module]:
    """Every parametrization of one kind in a model, by the name of its tensor (``features.0.weight``).

    One that several layers share has one name, that of the first.
    """
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        for tensor, steps in module.parametrizations.items() if parametrize.is_parametrized(module) else ():
            for step in steps:
                if isinstance(step, kind):
                    found.setdefault(step, f"{name}.{tensor}".lstrip("."))
    return {name: step for step, name in found.items()}


def bake(model: nn.Module) -> nn.Module:
    """A copy with plain weights, equal to those that the model computes with; its state dict fits the plain model.

    Layers that shared a tensor and its parametrizations share the plain one, too. A weight of the copy is trainable if
    any tensor that it was computed from is trainable.
    """
    baked = copied(model) if (plain := without_hooks(model)) is model else plain
    shared: dict[tuple, nn.Parameter] = {}
    for module in list(baked.modules()):
        if parametrize.is_parametrized(module):
            _bake(module, shared)
    return baked


@torch.no_grad()
def _bake(module: nn.Module, shared: dict[tuple, nn.Parameter]) -> None:
    """Replace the parametrized tensors of one module by plain ones, in place; those computed alike are shared."""
    # Not by parametrize.remove_parametrizations: copies share one class, so the original would lose its weight too.
    steps = module.parametrizations
    trainable = {name: any(parameter.requires_grad for parameter in steps[name].parameters()) for name in steps}
    values = {name: getattr(module, name).clone() for name in steps}
    sources = {name: (*steps[name].parameters(), *steps[name]) for name in steps}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        plain = shared.setdefault(sources[name], nn.Parameter(value, requires_grad=trainable[name]))
        module.register_parameter(name, plain)


def without_hooks(model: nn.Module) -> nn.Module:
    """A copy with plain weights where hooks compute them; the model itself if there are no such hooks.

    The hooks are those of ``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune``. The plain weights are those
    of eval mode: the spectral norm is the stored estimate.
    """
    if not any(True for module in model.modules() for _ in _hooked(module)):
        return model
    plain = copied(model)
    for module in plain.modules():
        for remove, name in reversed(list(_hooked(module))):
            trainable = any(parameter.requires_grad for key, parameter in _sources(module, name))
            remove(module, name)
            getattr(module, name).requires_grad_(trainable)
        for key, hook in list(module._load_state_dict_pre_hooks.items()):
            if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
                del module._load_state_dict_pre_hooks[key]  # torch leaves it, and it would ask for the hook's tensors
    return plain


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a network that keeps computed tensors as attributes, which ``copy.deepcopy`` refuses."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept if not value.is_leaf})


def _hooked(module: nn.Module) -> Iterator[tuple]:
    """(function that makes it plain, name of the tensor) of every tensor of a module that a hook computes."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield remove_weight_norm, hook.name
        elif isinstance(hook, SpectralNorm):
            yield remove_spectral_norm, hook.name
        elif isinstance(hook, prune.BasePruningMethod):
            yield prune.remove, hook._tensor_name


def _sources(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a module that a hook computes the tensor ``name`` from."""
    sources = {f"{name}_g", f"{name}_v", f"{name}_orig"}
    return ((key, value) for key, value in module.named_parameters(recurse=False) if key in sources)
