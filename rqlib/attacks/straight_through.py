"""Gradients straight through functions that cut them off: rounding, signs, clamps.

The forward pass computes f(x), the backward pass takes f(x) = x (BPDA by the identity, Athalye et al. 2018, arXiv
1802.00420). Only functions that torch calls by name are replaced; a network with comparisons or casts to integers is
attacked through a differentiable twin.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rqlib.core.vocabulary import Attack

_NAMES = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "clamp", "clip", "clamp_min", "clamp_max")
_OWNERS = (torch, Tensor)
IN_PLACE = frozenset(
    getattr(owner, f"{name}_") for owner in _OWNERS for name in _NAMES if hasattr(owner, f"{name}_")
) | {F.hardtanh_}
CUTTING = IN_PLACE | {getattr(owner, name) for owner in _OWNERS for name in _NAMES} | {F.hardtanh, F.relu6}
"""Functions of torch whose derivative is zero although their value matters; ``IN_PLACE`` holds those that change x."""


class StraightThrough(nn.Module):
    """A network with the same logits as another, but with the gradient of the identity through `CUTTING` functions.

    Attributes:
        cuts: number of calls of such functions in the last forward pass; 0 means that nothing was replaced.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.cuts = network, 0
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        with _Bridge() as bridge:
            logits = self.network(x)
        self.cuts = bridge.calls
        return logits


def attack(inner: Attack) -> Attack:
    """The same attack, for which every network has straight-through gradients."""

    def straight(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return inner(StraightThrough(model), x, y)

    return straight


class _Bridge(TorchFunctionMode):
    """While active, `CUTTING` functions pass the gradient of their tensor on unchanged."""

    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in CUTTING or not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return function(*args, **kwargs)
        self.calls += 1
        if function in IN_PLACE:
            # Without recording, the value changes and the gradient stays as it was. Leaves are recorded, so that
            # torch refuses to change them, as it does without this bridge.
            with torch.set_grad_enabled(args[0].is_leaf and torch.is_grad_enabled()):
                return function(*args, **kwargs)
        with torch.no_grad():
            value = function(args[0].clone(), *args[1:], **kwargs)  # a clone, because of functions with inplace=True
        return _PassedOn.apply(args[0], value)


class _PassedOn(torch.autograd.Function):
    """(source, value) -> value, with the gradient of source."""

    @staticmethod
    def forward(context, source: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
