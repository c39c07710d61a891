"""Layers of a network: list them, fold BatchNorm into them, transform their inputs, watch their outputs."""

import contextlib
import copy
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def weighted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every convolution and linear layer, in the order in which they are defined."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, WEIGHTED))


def batchnorms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every BatchNorm, in the order in which they are defined."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, NORMALIZATIONS))


def trace(model: nn.Module) -> fx.Graph:
    """The graph of a network's operations (torch.fx).

    Raises:
        ValueError: the forward pass branches on values of tensors, or is not Python; the message says in which line.
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
    folded = copy.deepcopy(model).eval()
    modules = dict(folded.named_modules(remove_duplicate=False))
    for layer_name, norm_name in foldable_pairs(folded):
        layer, norm = modules[layer_name], modules[norm_name]
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        folded.set_submodule(layer_name, fuse(layer, norm))
        folded.set_submodule(norm_name, nn.Identity())
    return folded


def foldable_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names (layer, BatchNorm) of pairs in which only the BatchNorm reads the layer's output, both called once."""
    graph = trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times_called = Counter(id(modules[node.target]) for node in calls)

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
