"""How much a network can stretch a perturbation: a bound composed of the bounds of its layers.

For a float network ``|f(x) - f(x')|_2 <= L |x - x'|_2``. A quantized signal jumps, so it has no such constant, but
rounding to a grid of step s moves two values apart by at most s more than they were: ``|Q(a) - Q(b)| <= |a - b| + s``.
The bound of a quantized network is therefore affine: ``|f(x) - f(x')|_2 <= L |x - x'|_2 + offset``, where each rounded
signal of n values adds ``s sqrt(n)``, stretched by the layers after it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas
import torch
from torch import Tensor, fx, nn

from rqlib.core import derived, layers, runtime
from rqlib.defenses import spectra
from rqlib.defenses.activations import AveragedRange, DDTReLU, DTReLU
from rqlib.defenses.noise import Noise


class Bound(NamedTuple):
    """``|f(x) - f(x')|_2 <= constant |x - x'|_2 + offset``."""

    constant: float
    offset: float = 0.0

    def through(self, norm: float, jump: float = 0.0) -> "Bound":
        """The bound behind a layer of this norm whose outputs may also jump by ``jump`` (their 2-norm)."""
        return Bound(norm * self.constant, norm * self.offset + jump)


def lipschitz(model: nn.Module, image_shape: tuple[int, ...], *, fold: bool = True) -> pandas.DataFrame:
    """The bound of every signal of a network against its input, in the order of computation: one row per operation.

    Args:
        model: pixels to logits; any network that torch.fx can trace.
        image_shape: (C, H, W).
        fold: BatchNorm is folded into the layers before it first, which gives smaller bounds.

    Returns:
        Columns: name (of the layer or operation), norm (a bound of its own; None for sums and concatenations), constant
        and offset (of the signal against the input). The last row is that of the logits.

    Raises:
        ValueError: torch.fx cannot trace the network; an operation whose constant is not known (it is named).
    """
    walker = walked(model, image_shape, fold=fold)
    return pandas.DataFrame(walker.rows, columns=["name", "norm", "constant", "offset"])


def walked(model: nn.Module, image_shape: tuple[int, ...], *, fold: bool = True) -> "Walker":
    """The graph of a network (``module``), with the bound of every node (``bounds``), as `lipschitz`."""
    images = torch.rand(2, *image_shape, generator=runtime.rng(0)).to(next(model.parameters()))
    make = derived.folded if fold else derived.traced
    network = model if isinstance(model, fx.GraphModule) else make(model, images)
    with runtime.evaluating(network), torch.no_grad():
        walker = Walker(network)
        walker.run(images[:1])
    return walker


@torch.no_grad()
def certified_radius(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The l2 radius (B,), in pixels, inside which no image is classified differently; 0 where the label is wrong.

    ``min_j ((z_y - z_j - 2 s) / |W_y - W_j|_2 - offset) / L``, with the logits z, the rows W of the last linear layer,
    the bound ``L |x - x'| + offset`` of its input, and the step s of quantized logits (0 if they are not quantized).
    For the L-infinity norm divide by ``sqrt(C H W)``.

    Raises:
        ValueError: as `lipschitz`; the network does not end in a linear layer.
    """
    *_, (name, last) = layers.weighted_layers(model)
    rows = lipschitz(model, tuple(x.shape[1:]))
    place = rows.index[rows.name == name]
    if not isinstance(last, nn.Linear) or not len(place) or place[-1] == 0:
        raise ValueError(f"expected a network that ends in a linear layer, got {type(last).__name__}")
    inputs, written = rows.loc[place[-1] - 1], rows.loc[place[-1]]
    with runtime.evaluating(model):
        logits = model(x).double()
    step = (rows.offset.iloc[-1] - written.offset) / math.sqrt(logits.shape[1])
    weight = last.weight.double()
    margins = logits.gather(1, y[:, None]) - logits - 2 * step
    radii = (margins / torch.cdist(weight[y], weight) - inputs.offset) / inputs.constant
    return radii.scatter(1, y[:, None], torch.inf).amin(1).clamp(min=0)


def average_pool_norm(pool: Callable[[Tensor], Tensor], image: tuple[int, ...]) -> float:
    """The exact norm of an average pool, which acts on rows and columns separately: a product of two small norms.

    Args:
        pool: from (1, 1, H, W) to pooled values.
        image: (H, W).
    """
    height, width = image
    rows = torch.stack([pool(_point(height, width, row, 0))[0, 0, :, 0] for row in range(height)])
    columns = torch.stack([pool(_point(height, width, 0, column))[0, 0, 0, :] for column in range(width)])
    both = torch.linalg.matrix_norm(rows, 2) * torch.linalg.matrix_norm(columns, 2)
    return (both / rows[0, 0]).item()  # the share of the first point in the first mean is in both factors


def max_pool_norm(kernel: int, stride: int) -> float:
    """A bound for one axis of a max-pool: the root of the number of windows that hold one value, ``ceil(k / s)``."""
    return math.sqrt(math.ceil(kernel / stride))


def _largest_step(format) -> float:
    """The distance between the two largest values of a number format, before scaling."""
    return format.max / (2 ** (format.mantissa_bits + 1) - 1)


def _point(height: int, width: int, row: int, column: int) -> Tensor:
    """An image (1, 1, H, W) of zeros with a one at this place."""
    image = torch.zeros(1, 1, height, width, dtype=torch.float64)
    image[:, :, row, column] = 1
    return image


_MODULES: dict[type | tuple[type, ...], float] = {
    (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten): 1.0,
    (nn.ELU, nn.Softplus, nn.ChannelShuffle, nn.PixelShuffle, Noise): 1.0,
    (nn.Sigmoid,): 0.25,
    (nn.Hardsigmoid,): 1 / 6,
    (nn.Hardswish,): 1.5,
    (nn.SiLU,): 1.0999,
    (nn.GELU,): 1.1290,
    (nn.Mish,): 1.0885,
}
"""Modules that stretch no perturbation by more than this number; for smooth ones the largest slope, rounded up."""

_FUNCTIONS: dict[str, float] = dict.fromkeys(
    ("relu", "relu_", "relu6", "hardtanh", "tanh", "dropout", "flatten", "reshape", "view", "permute", "transpose")
    + ("contiguous", "squeeze", "unsqueeze", "getitem", "chunk", "split", "to", "float", "elu", "softplus"),
    1.0,
) | {"sigmoid": 0.25, "hardsigmoid": 1 / 6, "hardswish": 1.5, "silu": 1.0999, "gelu": 1.1290, "mish": 1.0885}


class Walker(fx.Interpreter):
    """Runs a network on one image and notes the bound of every signal."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.bounds: dict[fx.Node, Bound] = {}
        self.rows: list[tuple] = []

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        bounds = [self.bounds[source] for source in node.all_input_nodes if source in self.bounds]
        if node.op == "placeholder":
            self.bounds[node] = Bound(1.0)
        elif node.op == "output":
            self.bounds[node] = self.logits = bounds[0]
        elif bounds and node.target not in (getattr, "size", "dim"):
            norm, bound = self._behind(node, value, bounds)
            self.bounds[node] = bound
            self.rows.append((str(getattr(node.target, "__name__", node.target)), norm, *bound))
        return value

    def _behind(self, node: fx.Node, value: Tensor, bounds: list[Bound]) -> tuple[float | None, Bound]:
        """(norm, bound) of a node whose inputs have these bounds."""
        inputs, (bound, *_) = [self.env[source] for source in node.all_input_nodes], bounds
        if node.op == "call_module":
            norm, jump = _of_module(self.module.get_submodule(node.target), inputs[0], value)
            return norm, bound.through(norm, jump)
        name = getattr(node.target, "__name__", str(node.target))
        if name in ("add", "add_", "iadd", "sub") and len(bounds) == 2:
            scale = abs(node.kwargs.get("alpha", 1))
            return None, Bound(bound.constant + scale * bounds[1].constant, bound.offset + scale * bounds[1].offset)
        if name in ("cat", "concat"):
            return None, Bound(*(math.hypot(*column) for column in zip(*bounds, strict=True)))
        norm = self._of_function(name, node, inputs, value, len(bounds))
        return norm, bound.through(norm)

    def _of_function(self, name: str, node: fx.Node, inputs: list[Tensor], value: Tensor, signals: int) -> float:
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        if name in ("leaky_relu",):
            return max(1.0, abs(node.kwargs.get("negative_slope", 0.01)))
        if name == "mean":
            return math.sqrt(value.numel() / inputs[0].numel())
        if name in ("add", "sub", "mul", "truediv", "div") and signals == 1:
            constant = next((part for part in map(self._constant, node.args) if part is not None), torch.ones(()))
            return {"mul": constant.abs().max(), "truediv": (1 / constant.abs()).max()}.get(
                name.replace("div", "truediv") if name == "div" else name, torch.ones(())
            ).item()
        if name in ("avg_pool2d", "adaptive_avg_pool2d"):
            options = dict(node.kwargs)
            return average_pool_norm(lambda x: node.target(x, *node.args[1:], **options), inputs[0].shape[2:])
        raise ValueError(
            f"no Lipschitz constant is known for the operation {name} ({node.name}); the bound needs layers, "
            "activations, pools, sums and concatenations"
        )

    def _constant(self, argument) -> Tensor | None:
        """A number or a tensor that does not depend on the image; None for a signal."""
        if isinstance(argument, fx.Node):
            return None if argument in self.bounds else self.env[argument]
        return torch.tensor(float(argument)) if isinstance(argument, int | float) else None


def _of_module(module: nn.Module, x: Tensor, value: Tensor) -> tuple[float, float]:
    """(norm, jump) of a module: how much it stretches a perturbation, and by how much its output may jump."""
    root = math.sqrt(value.numel())
    if layers.is_weighted(module):
        return spectra.norm_bound(module, tuple(x.shape[1:])), 0.0
    if isinstance(module, DTReLU | AveragedRange):
        lower = getattr(module, "lower", 0.0)
        return 1.0, root * ((module.upper - lower) / module.steps).item()
    if isinstance(module, DDTReLU):
        slope = (module.step.abs() / module.widths).max().item()
        return slope, root * module.step.abs().item()
    if hasattr(module, "format") and hasattr(module, "scale"):
        return 1.0, root * (module.scale.max() * _largest_step(module.format)).item()
    if layers.is_batchnorm(module) and module.running_mean is not None:
        gamma = torch.ones_like(module.running_var) if module.weight is None else module.weight
        return (gamma.abs() * torch.rsqrt(module.running_var + module.eps)).max().item(), 0.0
    if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        return average_pool_norm(module, x.shape[2:]), 0.0
    if isinstance(module, nn.MaxPool2d):
        kernel, stride = (nn.modules.utils._pair(value) for value in (module.kernel_size, module.stride))
        return math.prod(max_pool_norm(k, s) for k, s in zip(kernel, stride, strict=True)), 0.0
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope)), 0.0
    if isinstance(module, nn.PReLU):
        return max(1.0, module.weight.abs().max().item()), 0.0
    for kinds, norm in _MODULES.items():
        if isinstance(module, kinds):
            return norm, 0.0
    raise ValueError(
        f"no Lipschitz constant is known for {type(module).__name__}; the bound needs layers, activations, pools, sums "
        "and concatenations"
    )
