"""Layers of a network: list them, fold BatchNorm into them, transform their inputs, watch their outputs."""

import contextlib
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from rqlib.core import parametrizations, runtime

_BUILT_IN = ("torch.nn.modules.", "torch.nn.quantized.", "torch.nn.qat.", "torch.nn.intrinsic.", "torch.ao.nn.")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
VIEWS = {"view": "reshape", "view_as": "reshape_as"}
"""Methods of tensors that demand a memory format -> those that do the same in every format."""
_KEEPING_SHAPE = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU) + (
    *(nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus),
)


def weighted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every convolution and linear layer, in the order in which they are defined.

    A layer with several names has one row. A subclass with a forward pass of its own is none (`is_standard`).
    """
    return ((name, module) for name, module in model.named_modules() if is_weighted(module))


def other_weighted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of what is a convolution or linear layer by its class, but is none of the `weighted_layers`.

    These are transposed convolutions, and subclasses with a forward pass of their own.
    """
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return ((name, one) for name, one in model.named_modules() if isinstance(one, kinds) and not is_weighted(one))


def say_others_stay(model: nn.Module) -> None:
    """Warn, once for each network, of its `other_weighted_layers`, whose weights are left as they are."""
    others = [name for name, _ in other_weighted_layers(model)]
    if others:
        warnings.warn(
            "left as they are, because they are transposed convolutions or have a forward pass of their own: "
            f"{', '.join(others)}",
            stacklevel=1,  # one place for all callers, so that Python shows it once
        )


def is_weighted(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer that computes what torch's own does."""
    return isinstance(module, WEIGHTED) and is_standard(module)


def is_standard(module: nn.Module) -> bool:
    """Whether a module has the forward pass of the class of ``torch.nn`` that it is or that it comes from.

    A convolution that standardizes its weight, or pads by other rules, has not.
    """
    kind = type(module)
    own = next((base for base in kind.__mro__ if f"{base.__module__}.".startswith(_BUILT_IN)), None)
    parts = ("forward", "_conv_forward")
    same = [getattr(kind, part, None) is getattr(own, part, None) for part in parts]
    return own is not None and all(same) and not set(parts) & vars(module).keys()


def is_batchnorm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm that computes what torch's own does, not one with an activation of its own."""
    return isinstance(module, NORMALIZATIONS) and is_standard(module)


def batchnorms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every BatchNorm, in the order in which they are defined."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, NORMALIZATIONS))


def trace(model: nn.Module) -> fx.Graph:
    """The graph of a network's operations in eval mode (torch.fx); layers of ``torch.nn`` are its leaves.

    ``view`` becomes ``reshape``, which works in every memory format. The graph may compute something else than the
    network, for example if ``forward`` draws tensors of a fixed shape: `derived.check` tells.

    Raises:
        ValueError: the forward pass branches on values of tensors, or is not Python; the message says in which line.
    """
    try:
        with runtime.evaluating(model), _attributes_kept(model):
            graph = _Tracer().trace(model)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__}: {reason}{_where(error)}. What needs the graph "
            "(BatchNorm folding, quantized activations) is not possible; weights alone can still be changed "
            "(activations=False)"
        ) from error
    reshape_views(graph)
    return graph


def reshape_views(graph: fx.Graph) -> None:
    """Let a graph reshape where it views: the values are the same, and every memory format is accepted."""
    for node in graph.nodes:
        if (
            node.op == "call_method"
            and node.target in VIEWS
            and not any(isinstance(one, torch.dtype) for one in node.args)
        ):
            node.target = VIEWS[node.target]


class _Tracer(fx.Tracer):
    """Leaves are the layers of ``torch.nn``, their subclasses that compute the same, and modules with ``is_leaf``.

    Every BatchNorm is one: one with a forward pass of its own is not traced through, because torch's own checks the
    dimension.
    """

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        standard = is_standard(module) and not isinstance(module, nn.Sequential)
        other = isinstance(module, (parametrize.ParametrizationList, *NORMALIZATIONS))
        return standard or other or getattr(module, "is_leaf", False)


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards modules have the attributes that they had before, but for constants that tracing has made."""
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, kept in before.items():
            made = {key: value for key, value in vars(module).items() if key.startswith("_tensor_constant")}
            vars(module).clear()
            vars(module).update(made | kept)


def _where(error: Exception) -> str:
    """The last line outside of torch that an error passed through, as text; empty if there is none."""
    ours = (__file__, os.path.dirname(torch.__file__) + os.sep)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in eval mode in which every BatchNorm is folded into the convolution or linear layer before it.

    ``W' = W gamma / sqrt(var + eps)``, ``b' = beta + (b - mu) gamma / sqrt(var + eps)``. A folded BatchNorm
    becomes an identity, and names stay the same. A BatchNorm that is in none of the `foldable_pairs` is left as it is.

    Raises:
        ValueError: torch.fx cannot trace the network.
    """
    folded = parametrizations.copied(model).eval()
    names: dict[int, list[str]] = {}
    for name, module in folded.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for layer_name, norm_name in foldable_pairs(folded):
        layer, norm = folded.get_submodule(layer_name), folded.get_submodule(norm_name)
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        for module, by in ((layer, fuse(layer, norm)), (norm, nn.Identity())):
            for name in names[id(module)]:
                folded.set_submodule(name, by)
    return folded


def foldable_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names (layer, BatchNorm) of pairs in which only the BatchNorm reads the layer's output, both called once.

    The BatchNorm has running statistics and normalizes the layer's outputs: not, for example, the tokens (B, T, F)
    that a linear layer returns.
    """
    graph = trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times_called = Counter(id(modules[node.target]) for node in calls)
    # Tensors that forward passes read themselves: a layer whose weight is used elsewhere must keep it.
    read = {id(modules[node.target.rpartition(".")[0]]) for node in graph.find_nodes(op="get_attr")}

    def once(node: fx.Node, kinds: tuple[type, ...]) -> bool:
        module = modules.get(node.target) if node.op == "call_module" else None
        return (
            isinstance(module, kinds)
            and is_standard(module)
            and times_called[id(module)] == 1
            and id(module) not in read
        )

    return [
        (before.target, node.target)
        for node in calls
        if once(node, NORMALIZATIONS) and modules[node.target].running_mean is not None
        for before in node.all_input_nodes
        if once(before, WEIGHTED) and len(before.users) == 1
        if _normalizes_outputs(modules, before, modules[node.target])
    ]


def _normalizes_outputs(modules: dict[str, nn.Module], node: fx.Node, norm: nn.Module) -> bool:
    """Whether a BatchNorm on the result of a layer's call normalizes each output of the layer."""
    layer = modules[node.target]
    pairs = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))
    return any(isinstance(layer, one) and isinstance(norm, other) for one, other in pairs) or (
        isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and _is_matrix(modules, node)
    )


def _is_matrix(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Whether the value of a node is (B, F) for certain: it was flattened, or averaged over the image."""
    module = modules[node.target] if node.op == "call_module" else None
    name = str(getattr(node.target, "__name__", node.target))
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if name == "flatten":
        return (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1))
    if name in ("view", "reshape"):
        shape = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return len(shape) == 2
    if name == "mean":
        axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
        over_image = isinstance(axes, tuple | list) and sorted(axis % 4 for axis in axes) == [2, 3]
        return over_image and not (node.kwargs.get("keepdim") or node.args[2:])
    keeps = isinstance(module, _KEEPING_SHAPE) or name in ("relu", "relu_", "dropout", "sigmoid", "tanh")
    return keeps and _is_matrix(modules, node.all_input_nodes[0])


def attach_input_transform(layers: Iterable[nn.Module], make: Callable[[], nn.Module]) -> None:
    """Let each layer see ``transform(x)`` instead of x; ``make()`` makes one transform for each layer.

    The transform is a submodule of the layer named ``input_transform``, so it is copied, moved and saved
    with the layer. A second transform of the same layer is applied after the first.
    """
    for layer in layers:
        if hasattr(layer, "input_transform"):
            layer.input_transform = nn.Sequential(layer.input_transform, make())
        else:
            layer.input_transform = make()
            layer.register_forward_pre_hook(_transform_input)


def _transform_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.input_transform(inputs[0]), *inputs[1:])


def outputs(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """Run the model on x: name of each module -> output of its first call. Modules not called are left out."""
    found: dict[str, Tensor] = {}
    with watching(model, names, lambda name, inputs, output: found.setdefault(name, output)):
        model(x)
    return found


@contextlib.contextmanager
def watching(model: nn.Module, names: Iterable[str], note: Callable[[str, tuple, Tensor], object]) -> Iterator[None]:
    """Inside the block, call ``note(name, inputs, output)`` after every call of a named module."""

    def hook(name: str) -> Callable:
        def after(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            note(name, inputs, output)

        return after

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
