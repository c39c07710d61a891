"""Fake quantization: a weight or signal is rounded to the values of a format but stays a floating point tensor."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.quantization.formats import Format


class Quantized(nn.Module):
    """Rounds x to the values of a format: ``scale round(x / scale)``.

    So that the network can be attacked and trained, the gradient passes the rounding unchanged where x is inside the
    range of the format, from `Format.min` to `Format.max` times the scale; it is 0 outside. With ``masked = False`` it
    passes everywhere, so that an attack is not stopped where signals leave the range.

    It is the parametrization of a weight, or a module of a network through which a signal passes.

    Args:
        scale: what one unit of the format is worth: one number, or a tensor that broadcasts against x (one scale per
            output channel).

    Source: straight-through estimator, Y. Bengio et al. 2013, arXiv:1308.3432; its mask as in B. Jacob et al.
    2018, arXiv:1712.05877.
    """

    def __init__(self, format: Format, scale: Tensor):
        super().__init__()
        self.format, self.masked = format, True
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return _FakeQuantize.apply(x, self.scale, self.format, self.masked)
        return self.format.round_scaled(x, self.scale)

    def right_inverse(self, x: Tensor) -> Tensor:
        """What is stored when x is assigned to a quantized ``layer.weight``: x itself."""
        return x

    def extra_repr(self) -> str:
        return f"{self.format.name}, {self.scale.numel()} scale{'s' if self.scale.numel() > 1 else ''}"


class _FakeQuantize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, format: Format, masked: bool) -> Tensor:
        return format.round_scaled(x, scale)

    @staticmethod
    def setup_context(context, inputs: tuple, output: Tensor) -> None:
        x, scale, context.format, context.masked = inputs
        context.save_for_backward(*((x, scale) if context.masked else ()))

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple:
        if context.masked:
            gradient = _inside(gradient, *context.saved_tensors, context.format)
        return gradient, None, None, None


def _inside(gradient: Tensor, x: Tensor, scale: Tensor, format: Format) -> Tensor:
    """The gradient where x is inside the range of the format times the scale, and 0 elsewhere.

    On each side the range is wider by a millionth of the largest value, because a rounded scale may put the largest x
    just outside.
    """
    margin = 1e-6 * format.max
    if x.device.type == "cpu" and scale.numel() == 1:
        lowest, largest = ((limit * scale).item() for limit in (format.min - margin, format.max + margin))
        return torch.ops.aten.hardtanh_backward(gradient, x, lowest, largest)  # a single pass through memory
    return gradient * ((x >= (format.min - margin) * scale) & (x <= (format.max + margin) * scale))


def quantizer(layer: nn.Module, name: str = "weight") -> Quantized | None:
    """The last `Quantized` among the parametrizations of a layer's tensor; None if there is none."""
    if not parametrize.is_parametrized(layer, name):
        return None
    return next((step for step in reversed(layer.parametrizations[name]) if isinstance(step, Quantized)), None)


def unmasked(model: nn.Module) -> nn.Module:
    """A copy for attacks, in which every `Quantized` weight and signal passes its gradient everywhere."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, Quantized):
            module.masked = False
    return twin
