"""Walk the layers that carry weights, fold BatchNorm into them, transform what flows into them."""

import contextlib
import copy
import os
import traceback
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def weighted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every convolution and linear layer, in the order of definition."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, WEIGHTED))


def batchnorms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every BatchNorm, in the order of definition."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, NORMALIZATIONS))


def trace(model: nn.Module) -> fx.Graph:
    """The graph of a network's operations (torch.fx).

    Raises:
        ValueError: the forward pass branches on values of tensors, or is not Python; the message
            names the reason, the line of the network where it fails, and what still works.
    """
    try:
        return fx.Tracer().trace(model)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__}: {reason}{_where(error)}. What needs the graph "
            "(BatchNorm folding, quantized activations) is not possible; weights alone can still be changed "
            "(activations=False)"
        ) from error


def _where(error: Exception) -> str:
    """The last line outside of torch that an error passed through, as text; empty where there is none."""
    ours = (__file__, os.path.dirname(torch.__file__) + os.sep)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose BatchNorms are folded into the convolution or linear layer before them.

    ``W' = W gamma / sqrt(var + eps)``, ``b' = beta + (b - mu) gamma / sqrt(var + eps)``; the folded
    BatchNorm becomes an identity, names stay. What cannot be folded is left as it is (a BatchNorm
    whose input is no such layer, or a layer whose output is used twice, or that is called twice):
    `batchnorms` of the result lists it.

    Raises:
        ValueError: torch.fx cannot trace the network.
    """
    folded = copy.deepcopy(model).eval()
    modules = dict(folded.named_modules(remove_duplicate=False))
    for layer_name, norm_name in foldable_pairs(folded):
        layer, norm = modules[layer_name], modules[norm_name]
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        _set_module(folded, layer_name, fuse(layer, norm))
        _set_module(folded, norm_name, nn.Identity())
    return folded


def foldable_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """(layer, BatchNorm) names where the BatchNorm alone reads the layer's output, each called once."""
    graph = trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times_called: dict[int, int] = {}
    for node in calls:
        key = id(modules[node.target])
        times_called[key] = times_called.get(key, 0) + 1

    def once(node: fx.Node, kinds: tuple[type, ...]) -> bool:
        module = modules.get(node.target) if node.op == "call_module" else None
        return isinstance(module, kinds) and times_called[id(module)] == 1

    return [
        (before.target, node.target)
        for node in calls
        if once(node, NORMALIZATIONS) and modules[node.target].track_running_stats
        for before in node.all_input_nodes
        if once(before, WEIGHTED) and len(before.users) == 1
    ]


def attach_input_transform(layers: Iterable[nn.Module], make: Callable[[], nn.Module]) -> None:
    """Let each layer see ``transform(x)`` instead of x; ``make()`` gives each layer its own transform.

    The transform is a submodule named ``input_transform``: it is copied, moved and saved with the
    layer. A second transform of the same layer follows the first.
    """
    for layer in layers:
        if hasattr(layer, "input_transform"):
            layer.input_transform = nn.Sequential(layer.input_transform, make())
        else:
            layer.input_transform = make()
            layer.register_forward_pre_hook(_transform_input)


def _transform_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.input_transform(inputs[0]), *inputs[1:])


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def outputs(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """Name -> output of that module's first call on x; modules that are not called are left out."""
    found: dict[str, Tensor] = {}
    with watching(model, names, lambda name, inputs, output: found.setdefault(name, output)):
        model(x)
    return found


@torch.no_grad()
def output_shapes(model: nn.Module, x: Tensor) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Name of each weighted layer -> (input shape, output shape) of its first call on x."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    names = [name for name, _ in weighted_layers(model)]
    with watching(model, names, lambda name, inputs, output: shapes.setdefault(name, (inputs[0].shape, output.shape))):
        model(x)
    return shapes


@contextlib.contextmanager
def watching(model: nn.Module, names: Iterable[str], note: Callable[[str, tuple, Tensor], object]) -> Iterator[None]:
    """Call ``note(name, inputs, output)`` after each call of the named modules while the block runs.

    The hooks are gone when the block ends, also by an exception.
    """

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
