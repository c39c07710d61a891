"""A network as a list of steps for which bounds are known: affine maps, ReLU, clips, rounding, max-pools and sums.

BatchNorm is folded, and what does not depend on the image is computed once. Masks, factors and number formats need
nothing here, because ``layer.weight`` is the weight that the network computes with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from rqlib.core import derived, layers, runtime
from rqlib.defenses.noise import is_randomized

IMAGE, LAYER, SCALE, LINEAR, RESHAPE = "image", "layer", "scale", "linear", "reshape"
ADD, MONOTONE = "add", "monotone"
RELU, CLIP, ROUND, MAX = CURVES = "relu", "clip", "round", "max"
"""Kinds of steps. LAYER is a convolution or linear layer. SCALE maps every value by an affine function of its own, such
as BatchNorm. LINEAR is any other affine map in which each result increases with every value that it reads, or does not
depend on it; RESHAPE keeps all values in their order. MONOTONE maps single values and has bounds in boxes only. CURVES
are what linear bounds replace by two lines."""

INCREASING = (LINEAR, RESHAPE, ADD, *CURVES)
"""Kinds in which no result decreases with a value that it reads."""

_LINEAR_MODULES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.ZeroPad2d, nn.ChannelShuffle, nn.PixelShuffle),
)
_RESHAPING_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)
_MONOTONE_MODULES = (nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.Softplus, nn.Hardsigmoid)
_LINEAR_NAMES = ("permute", "transpose", "getitem", "cat", "concat", "mean", "avg_pool2d", "adaptive_avg_pool2d")
_RESHAPING_NAMES = ("flatten", "reshape", "view", "contiguous", "squeeze", "unsqueeze", "dropout", "to", "float")
_MONOTONE_NAMES = ("sigmoid", "tanh", "leaky_relu", "softplus", "hardsigmoid")
_SEVERAL = ("chunk", "split")
_ADDITIONS = ("add", "iadd", "add_")
_ARITHMETIC = (*_ADDITIONS, "sub", "mul", "truediv", "div")
UNLIMITED = (-torch.inf, torch.inf)


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a program.

    Attributes:
        name: of the layer or operation, for messages.
        kind: one of the words above.
        sources: numbers of the steps whose results it reads.
        apply: from these results to its own, for any number of images.
        shape: of its result for one image.
        module: the layer, if it is one.
        limits: of a clip.
    """

    name: str
    kind: str
    sources: tuple[int, ...]
    apply: Callable[..., Tensor]
    shape: tuple[int, ...]
    module: nn.Module | None = None
    limits: tuple[float, float] = UNLIMITED


def start(steps: list[Step]) -> int:
    """Number of the last step up to which every value of the image is only mapped by an affine function of its own.

    The box of that step is exact, so nothing is gained by going back farther.
    """
    number = 0
    while number + 1 < len(steps):
        readers = [reader for reader, step in enumerate(steps) if number in step.sources]
        after = steps[number + 1]
        if readers != [number + 1] or after.kind != SCALE or after.shape != steps[number].shape:
            break
        number += 1
    return number


class NoBounds(ValueError):
    """No bounds are known for a network. The message names what they are not known for."""


def program(model: nn.Module, image_shape: tuple[int, ...]) -> list[Step]:
    """The steps of a network from the image (number 0) to the logits (the last).

    Raises:
        NoBounds: torch.fx cannot trace the network; it draws random numbers; a step has no bounds (it is named).
    """
    if is_randomized(model):
        raise NoBounds("the network draws random numbers, which no bound holds for; randomized smoothing certifies it")
    images = torch.rand(2, *image_shape, generator=runtime.rng(0)).to(next(model.parameters()))
    try:
        network = model if isinstance(model, fx.GraphModule) else derived.folded(model, images)
    except ValueError as error:
        raise NoBounds(str(error)) from error
    with runtime.evaluating(network), torch.no_grad():
        steps = read(network, images[:1])
        _check(steps, network, images)
    return steps


class _Steps(nn.Module):
    """Steps as a network."""

    def __init__(self, steps: list[Step]):
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor] = []
        for step in self.steps:
            values.append(step.apply(*(values[source] for source in step.sources)) if step.sources else x)
        return values[-1]


def _check(steps: list[Step], network: nn.Module, images: Tensor) -> None:
    """Raise NoBounds unless the steps, which were read from one image, compute what the network does for several."""
    try:
        derived.check(network, _Steps(steps), images, what="reading its steps from one image")
    except (derived.NotEqual, RuntimeError) as error:
        raise NoBounds(str(error)) from error


def read(network: fx.GraphModule, image: Tensor) -> list[Step]:
    """The steps of a graph, in eval mode, from running it on one image (1, C, H, W). The steps share its layers.

    Raises:
        NoBounds: a step has no bounds (it is named).
    """
    reader = _Reader(network)
    reader.run(image)
    return reader.steps


class _Reader(fx.Interpreter):
    """Runs a network on one image and writes down its steps."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.steps: list[Step] = []
        self.numbers: dict[fx.Node, int] = {}
        self.several: dict[fx.Node, tuple[tuple[int, ...], Callable]] = {}
        self.batch_sizes: set[fx.Node] = set()

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        (several,) = {source for source in node.all_input_nodes if source in self.several} or {None}
        sources = tuple(self.numbers[source] for source in node.all_input_nodes if source in self.numbers)
        if node.op == "placeholder":
            self._note(node, Step("image", IMAGE, (), lambda x: x, tuple(value.shape[1:])))
        elif several is not None:  # one of several tensors is picked: both operations become one step
            sources, make = self.several[several]
            self._note(node, Step(node.name, LINEAR, sources, self._picked(node, make), tuple(value.shape[1:])))
        elif sources and _name(node) in _SEVERAL:
            self.several[node] = sources, self._function(node)
        elif sources and node.op != "output" and node.target not in (getattr, "size", "dim"):
            self._note(node, self._step(node, value, sources))
        elif _is_batch_size(node):
            self.batch_sizes.add(node)
        return value

    def _note(self, node: fx.Node, step: Step) -> None:
        self.numbers[node] = len(self.steps)
        self.steps.append(step)

    def _step(self, node: fx.Node, value: Tensor, sources: tuple[int, ...]) -> Step:
        module = self.module.get_submodule(node.target) if node.op == "call_module" else None
        signals = [source for source in node.all_input_nodes if source in self.numbers]
        kind, limits = _of_operation(node, signals) if module is None else _of_module(module)
        if kind is None:
            what = _name(node) if module is None else f"{type(module).__name__}{' with hooks' * _is_hooked(module)}"
            raise NoBounds(
                f"no bounds are known for {what} ({node.name}); known are convolutions, linear layers, BatchNorm, "
                "ReLU, clips, rounding, pools, sums, concatenations. Randomized smoothing certifies any network"
            )
        shape = tuple(value.shape[1:])
        apply = self._function(node) if module is None else module
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            apply = nn.Identity()  # also while the network is trained
        if _name(node) in ("iadd", "add_") or getattr(module, "inplace", False):
            apply = _out_of_place(apply)
        return Step(node.name, kind, sources, apply, shape, module, limits)

    def _function(self, node: fx.Node) -> Callable[..., Tensor]:
        """The operation as a function of the signals that it reads, for any number of images."""
        signals = [source for source in node.all_input_nodes if source in self.numbers]
        constants = {source: self.env[source] for source in node.all_input_nodes if source not in self.numbers}
        sizes = [source for source in constants if source in self.batch_sizes]

        def apply(*values: Tensor) -> Tensor:
            known = constants | dict.fromkeys(sizes, len(values[0])) | dict(zip(signals, values, strict=True))
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda part: known[part])
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return node.target(*args, **kwargs)

        return apply

    def _picked(self, node: fx.Node, make: Callable) -> Callable[..., Tensor]:
        return lambda *values: make(*values)[node.args[1]]


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node is ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]``."""
    if node.target == "size":
        return node.args[1:] == (0,) or node.kwargs == {"dim": 0}
    if _name(node) != "getitem" or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return False
    whole = node.args[0]
    return whole.target == "size" and not whole.args[1:] or whole.target is getattr and whole.args[1] == "shape"


def _out_of_place(apply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same operation, which leaves what it reads as it is."""
    return lambda *values: apply(*(value.clone() for value in values))


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _of_operation(node: fx.Node, signals: list[fx.Node]) -> tuple[str | None, tuple[float, float]]:
    """(kind, limits of a clip) of a function or method; None if no bounds are known."""
    name = _name(node)
    if name in ("relu", "relu_"):
        return RELU, UNLIMITED
    if name in ("relu6", "hardtanh", "clamp", "clip"):
        return CLIP, _limits(name, node)
    if name in _ARITHMETIC and len(signals) == 1:
        return (SCALE if _is_affine(name, node, *signals) else None), UNLIMITED
    if name in _ADDITIONS and not node.kwargs:
        return ADD, UNLIMITED
    kinds = {LINEAR: _LINEAR_NAMES, RESHAPE: _RESHAPING_NAMES, MONOTONE: _MONOTONE_NAMES}
    return next((kind for kind, names in kinds.items() if name in names), None), UNLIMITED


def _is_affine(name: str, node: fx.Node, signal: fx.Node) -> bool:
    """Whether arithmetic with one signal is affine in it: it is no square and no divisor."""
    places = [number for number, part in enumerate(node.args) if part is signal]
    return places == [0] if name in ("truediv", "div") else len(places) == 1 and not node.kwargs


def _limits(name: str, node: fx.Node) -> tuple[float, float]:
    """The limits of a clip that is written as a function."""
    own = {"relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}.get(name, UNLIMITED)
    given = dict(zip(("min", "max"), node.args[1:], strict=False)) | {
        key.removesuffix("_val"): value for key, value in node.kwargs.items()
    }
    low, high = (given.get(which) for which in ("min", "max"))
    return own[0] if low is None else float(low), own[1] if high is None else float(high)


def _is_hooked(module: nn.Module) -> bool:
    """Whether the layer may compute something else than its kind."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _of_module(module: nn.Module) -> tuple[str | None, tuple[float, float]]:
    """(kind, limits of a clip) of a module; None if no bounds are known."""
    if _is_hooked(module):
        return None, UNLIMITED
    if layers.is_weighted(module):
        return LAYER, UNLIMITED
    if isinstance(module, nn.ReLU6 | nn.Hardtanh):
        return CLIP, (module.min_val, module.max_val)
    if hasattr(module, "format") and hasattr(module, "scale"):
        scale = float(module.scale)
        return ROUND, (module.format.min * scale, module.format.max * scale)
    if layers.is_batchnorm(module) and module.running_mean is not None:
        return SCALE, UNLIMITED
    kinds = {RELU: nn.ReLU, MAX: nn.MaxPool2d, LINEAR: _LINEAR_MODULES, RESHAPE: _RESHAPING_MODULES}
    kinds[MONOTONE] = _MONOTONE_MODULES
    return next((kind for kind, types in kinds.items() if isinstance(module, types)), None), UNLIMITED
