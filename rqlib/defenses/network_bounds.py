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
from rqlib.defenses.noise import Noise, SelfEnsemble


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
    if isinstance(model, SelfEnsemble):
        raise ValueError(
            "expected a network that draws no noise, got a random self-ensemble; bound the one inside it: model.network"
        )
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
    walker = walked(model, tuple(x.shape[1:]))
    node, weight = _last_linear(walker.module)
    inputs, written = walker.bounds[node.all_input_nodes[0]], walker.bounds[node]
    with runtime.evaluating(model):
        logits = model(x).double()
    step = (walker.logits.offset - written.offset) / math.sqrt(logits.shape[1])
    margins = logits.gather(1, y[:, None]) - logits - 2 * step
    radii = (margins / torch.cdist(weight[y], weight) - inputs.offset) / inputs.constant
    return radii.scatter(1, y[:, None], torch.inf).amin(1).clamp(min=0)


def _last_linear(network: fx.GraphModule) -> tuple[fx.Node, Tensor]:
    """The linear layer whose outputs are the logits, quantized or as they are, and its weight in float64."""
    node = next(one for one in reversed(network.graph.nodes) if one.op == "output").args[0]
    module = None
    while isinstance(node, fx.Node) and node.op == "call_module":
        module = network.get_submodule(node.target)
        if isinstance(module, nn.Linear):
            return node, module.weight.double()
        if not (isinstance(module, nn.Identity | nn.Dropout) or _is_quantizer(module)):
            break
        node = node.all_input_nodes[0]
    got = type(module).__name__ if module is not None else f"the operation {node}"
    raise ValueError(
        f"expected a network that ends in a linear layer, got {got}; certify by smoothing or boxes instead"
    )


def _is_quantizer(module: nn.Module) -> bool:
    """Whether a module rounds a signal to a number format."""
    return hasattr(module, "format") and hasattr(module, "scale")


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


def max_pool_norm(kernel: int, stride: int, dilation: int = 1) -> float:
    """A bound for one axis of a max-pool: the root of the number of windows that hold one value, ``ceil(k / s)``.

    With a dilation d that shares a factor with s, a value is in more windows: ``ceil(k gcd(d, s) / s)``.
    """
    return math.sqrt(math.ceil(kernel * math.gcd(dilation, stride) / stride))


def _largest_step(format) -> float:
    """The largest distance between neighboring values of a number format, before scaling."""
    last = format.smallest_normal * 2.0 ** (2**format.exponent_bits - 2)  # the largest power of two
    return max(last * 2.0**-format.mantissa_bits, format.hole)


def _point(height: int, width: int, row: int, column: int) -> Tensor:
    """An image (1, 1, H, W) of zeros with a one at this place."""
    image = torch.zeros(1, 1, height, width, dtype=torch.float64)
    image[:, :, row, column] = 1
    return image


_MODULES: dict[type | tuple[type, ...], float] = {
    (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten): 1.0,
    (nn.Softplus, nn.ChannelShuffle, nn.PixelShuffle, Noise): 1.0,
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
    + ("contiguous", "squeeze", "unsqueeze", "chunk", "split", "to", "float", "softplus"),
    1.0,
) | {"sigmoid": 0.25, "hardsigmoid": 1 / 6, "hardswish": 1.5, "silu": 1.0999, "gelu": 1.1290, "mish": 1.0885}


_SLOPES = {"leaky_relu": ("negative_slope", 0.01), "elu": ("alpha", 1.0)}
"""Functions whose slope below 0 is an argument: name -> (its name, usual value)."""

_SUMS = ("add", "add_", "iadd", "sub")


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
        """(norm, bound) of a node; ``bounds`` are those of its inputs, each once."""
        if node.op == "call_module":
            x = self.env[node.all_input_nodes[0]]
            norm, jump = _of_module(self.module.get_submodule(node.target), x, value)
            return norm, bounds[0].through(norm, jump)
        name = getattr(node.target, "__name__", str(node.target))
        signals = self._signals(node)
        if name in _SUMS and len(signals) == 2:
            scales = (1.0, abs(node.kwargs.get("alpha", 1)))
            parts = [
                self.bounds[signal].through(scale * _repeated(self.env[signal], value))
                for signal, scale in zip(signals, scales, strict=True)
            ]
            return None, Bound(*map(sum, zip(*parts, strict=True)))
        if name in ("cat", "concat"):
            parts = [self.bounds[signal] for signal in signals]
            return None, Bound(*(math.hypot(*column) for column in zip(*parts, strict=True)))
        norm = self._of_function(name, node, value) if len(signals) == 1 else None
        if norm is None:
            raise ValueError(
                f"no Lipschitz constant is known for the operation {name} ({node.name}); the bound needs layers, "
                "activations, pools, sums and concatenations"
            )
        return norm, self.bounds[signals[0]].through(norm)

    def _signals(self, node: fx.Node) -> list[fx.Node]:
        """The arguments of an operation that depend on the image; one that stands there twice is there twice."""
        found: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), found.append)
        return [one for one in found if one in self.bounds]

    def _of_function(self, name: str, node: fx.Node, value: Tensor) -> float | None:
        """The norm of an operation on one signal; None if it is not known."""
        (signal,) = self._signals(node)
        x, first = self.env[signal], node.args[:1] == (signal,)
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        if name in _SLOPES:
            key, usual = _SLOPES[name]
            return max(1.0, abs(node.kwargs.get(key, (*node.args, usual)[1])))
        if name == "getitem":
            return _of_index(x, self.map_nodes_to_values(node.args[1], node))
        if name == "mean":
            return math.sqrt(value.numel() / x.numel())
        if name in _SUMS:
            return _repeated(x, value) * (1.0 if first else max(1.0, abs(node.kwargs.get("alpha", 1))))
        if name == "mul" and len(node.args) == 2:
            return _repeated(x, value) * self._constant(node.args[first]).abs().max().item()
        if name in ("truediv", "div") and first and len(node.args) == 2 and not node.kwargs:
            return _repeated(x, value) * (1 / self._constant(node.args[1]).abs()).max().item()
        if name in ("avg_pool2d", "adaptive_avg_pool2d"):
            options = dict(node.kwargs)
            return average_pool_norm(lambda x: node.target(x, *node.args[1:], **options), x.shape[2:])
        return None

    def _constant(self, argument) -> Tensor:
        """A number or a tensor that does not depend on the image."""
        value = self.env[argument] if isinstance(argument, fx.Node) else argument
        return torch.as_tensor(value, dtype=torch.float64)


def _repeated(x: Tensor, value: Tensor) -> float:
    """The norm of repeating x until it has the shape of a value, as sums and products do."""
    return math.sqrt(max(1.0, value.numel() / x.numel()))


def _of_index(x: Tensor | tuple, index) -> float:
    """The norm of taking elements of x: the root of how often one of them is taken."""
    if not isinstance(x, Tensor):
        return 1.0
    places = torch.arange(x.numel(), device=x.device).view(x.shape)[index]
    return math.sqrt(torch.bincount(places.flatten(), minlength=1).max().item())


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
    if _is_quantizer(module):
        return 1.0, root * (module.scale.max() * _largest_step(module.format)).item()
    if layers.is_batchnorm(module) and module.running_mean is not None:
        gamma = torch.ones_like(module.running_var) if module.weight is None else module.weight
        return (gamma.abs() * torch.rsqrt(module.running_var + module.eps)).max().item(), 0.0
    if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        return average_pool_norm(module, x.shape[2:]), 0.0
    if isinstance(module, nn.MaxPool2d):
        axes = zip(*map(nn.modules.utils._pair, (module.kernel_size, module.stride, module.dilation)), strict=True)
        return math.prod(max_pool_norm(*axis) for axis in axes), 0.0
    if isinstance(module, nn.LeakyReLU | nn.ELU):
        return max(1.0, abs(module.negative_slope if isinstance(module, nn.LeakyReLU) else module.alpha)), 0.0
    if isinstance(module, nn.PReLU):
        return max(1.0, module.weight.abs().max().item()), 0.0
    for kinds, norm in _MODULES.items():
        if isinstance(module, kinds):
            return norm, 0.0
    raise ValueError(
        f"no Lipschitz constant is known for {type(module).__name__}; the bound needs layers, activations, pools, sums "
        "and concatenations"
    )
