"""What stands between a layer's stored tensor and the one it computes with (``torch.nn.utils.parametrize``)."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.formats import Format


class Quantized(nn.Module):
    """x on the grid of a format: ``scale round(x / scale)``; the gradient passes inside the range and is 0 outside.

    With ``masked = False`` it passes everywhere: an attack then also climbs where the range is left.

    As the parametrization of a weight it quantizes the weight, as a module in the flow of a network it
    quantizes the signal.

    Args:
        scale: what one unit of the format is worth; one number, or a shape that broadcasts against x
            (one scale an output channel).

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
        return self.format.round(x / self.scale) * self.scale

    def right_inverse(self, x: Tensor) -> Tensor:
        """What to store so that x is computed with: x itself (assigning to ``layer.weight`` works)."""
        return x

    def extra_repr(self) -> str:
        return f"{self.format.name}, {self.scale.numel()} scale{'s' if self.scale.numel() > 1 else ''}"


class _FakeQuantize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, format: Format, masked: bool) -> Tensor:
        return format.round(x / scale) * scale

    @staticmethod
    def setup_context(context, inputs: tuple, output: Tensor) -> None:
        x, scale, format, masked = inputs
        limit = format.max * (1 + 1e-6) * scale  # a margin: a rounded scale may leave the largest value just outside
        context.save_for_backward(x.abs() <= limit if masked else torch.ones_like(x, dtype=torch.bool))

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple:
        (inside,) = context.saved_tensors
        return gradient * inside, None, None, None


class Masked(nn.Module):
    """The entries that a mask keeps, 0 elsewhere; what is not kept has no gradient.

    Args:
        mask: bool, True is kept; of a shape that broadcasts against the tensor.
    """

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def right_inverse(self, x: Tensor) -> Tensor:
        """What to store: x itself."""
        return x


class Scored(nn.Module):
    """The entries whose scores a rule keeps, 0 elsewhere; the gradient passes straight through the choice.

    ``dL/dS = dL/dW_effective * W * sign(S)``; W has the gradient of a mask.

    Args:
        scores: one an entry, or a shape that broadcasts; tensors that stay or go together share them.
        choose: scores -> mask (bool, True is kept) of their shape.
        rows: where only some of the scores are this tensor's: their indices, of a shape that broadcasts.

    Source: HYDRA, Sehwag et al. 2020, arXiv 2002.10509; Ramanujan et al. 2020, arXiv 1911.13299.
    """

    def __init__(self, scores: nn.Parameter, choose: Callable[[Tensor], Tensor], rows: Tensor | None = None):
        super().__init__()
        self.scores, self.choose = scores, choose
        self.register_buffer("rows", rows)

    def mask(self) -> Tensor:
        """What is kept now: bool, of a shape that broadcasts against the tensor."""
        return self._mine(self.choose(self.scores.detach()))

    def forward(self, x: Tensor) -> Tensor:
        straight = self.scores.abs() - self.scores.abs().detach()  # 0, with the gradient of |S|
        return x * (self.mask() + self._mine(straight))

    def right_inverse(self, x: Tensor) -> Tensor:
        """What to store: x itself."""
        return x

    def _mine(self, scores: Tensor) -> Tensor:
        return scores if self.rows is None else scores[self.rows]


class Anchored(nn.Module):
    """The tensor itself, beside what ADMM pulls it to: ``Z`` (nearest) in the set and the scaled dual ``U``.

    Source: Boyd et al. 2011, Foundations and Trends in Machine Learning 3(1); Zhang et al. 2018, arXiv 1804.03294.
    """

    def __init__(self, nearest: Tensor, rho: float):
        super().__init__()
        self.register_buffer("nearest", nearest.detach().clone())
        self.register_buffer("dual", torch.zeros_like(nearest))
        self.register_buffer("rho", torch.tensor(rho))

    def forward(self, x: Tensor) -> Tensor:
        return x

    def penalty(self, x: Tensor) -> Tensor:
        """``rho / 2 ||x - Z + U||^2``."""
        return self.rho / 2 * (x - self.nearest + self.dual).square().sum()

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor, growth: float) -> None:
        """``Z <- mask (x + U)``, ``U <- U + x - Z``, ``rho <- growth rho``; the mask is that of x + U."""
        self.nearest.copy_(mask * (x + self.dual))
        self.dual.add_(x - self.nearest)
        self.rho.mul_(growth)


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


def quantizer(layer: nn.Module, name: str = "weight") -> Quantized | None:
    """The `Quantized` that a layer's tensor goes through last, None where there is none."""
    if not parametrize.is_parametrized(layer, name):
        return None
    return next((step for step in reversed(layer.parametrizations[name]) if isinstance(step, Quantized)), None)


def unmasked(model: nn.Module) -> nn.Module:
    """A copy whose `Quantized` weights and signals pass their gradients everywhere, for attacks."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, Quantized):
            module.masked = False
    return twin


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
