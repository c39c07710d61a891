"""Gradients straight through everything that cuts them: rounding, signs, clamps.

Backward pass differentiable approximation by the identity (Athalye et al. 2018, arXiv 1802.00420):
forward f(x), backward as if f(x) = x. It replaces what torch calls by name; a comparison or a cast to
integers stays as it is (attack that through a differentiable twin of the network).
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
"""Functions of torch whose derivative is zero where their value still matters; ``IN_PLACE`` those that change x."""


class StraightThrough(nn.Module):
    """A network that computes the same logits, with the identity's gradient through `CUTTING` functions.

    Attributes:
        cuts: how many such calls the last forward made; 0 means the gradients were whole anyway.
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
    """The same attack, which sees every network with straight-through gradients."""

    def straight(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return inner(StraightThrough(model), x, y)

    return straight


class _Bridge(TorchFunctionMode):
    """While active, cutting functions of tensors that carry a gradient pass it on unchanged."""

    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in CUTTING or not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return function(*args, **kwargs)
        self.calls += 1
        if function in IN_PLACE:  # without a graph of its own it changes the value and leaves the gradient as it was
            with torch.set_grad_enabled(args[0].is_leaf and torch.is_grad_enabled()):  # torch refuses a leaf's change
                return function(*args, **kwargs)
        with torch.no_grad():
            value = function(args[0].clone(), *args[1:], **kwargs)  # a clone: it may have inplace=True
        return _PassedOn.apply(args[0], value)


class _PassedOn(torch.autograd.Function):
    @staticmethod
    def forward(context, source: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
