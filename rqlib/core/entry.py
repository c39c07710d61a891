"""A trained network as it comes becomes a classifier: pixels (B, C, H, W) in, logits (B, K) out."""

import copy
import functools
import inspect
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from rqlib.core import layers, parametrizations

_WRAPPERS = {"OptimizedModule": "_orig_mod", **dict.fromkeys(("DataParallel", "DistributedDataParallel"), "module")}
"""Class of a module that only calls another one -> the attribute that holds it."""

_NARROW = (torch.float16, torch.bfloat16)


def classifier(model: nn.Module) -> nn.Module:
    """A network that maps pixels to logits, whatever else the given one takes and returns.

    - ``torch.compile``, DataParallel and DistributedDataParallel are taken off, in parts of the network, too.
    - Weights that hooks compute (`parametrizations.without_hooks`) become plain, in a copy.
    - Of several outputs the logits are taken: ``.logits``, ``["logits"]``, the first of a tuple or list.
    - Further arguments of the forward pass have their defaults; the image is the first argument.
    - A network in float64 takes float32 images. One in half precision is copied to float32, with a warning.
    - ``view`` works on images in every memory format, as ``reshape`` does.

    Names, modes, hooks and parametrizations stay. If nothing is copied, the result shares everything with the given
    network, and to train one is to train the other. A network of which it is known that nothing is to be done is
    returned itself. Tracing (`layers.trace`) works if it did before.

    Raises:
        TypeError: not a ``torch.nn.Module``.
        ValueError: the forward pass requires more than the image, or takes no image; later, when the network is
            called: it returns no logits.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}; put the function into a module")
    model = _unwrapped(model, {})
    if isinstance(model, torch.jit.ScriptModule):
        return _Scripted(model)
    _check_arguments(model)
    model = _at_least_float32(parametrizations.without_hooks(model))
    _warn_of_batch_statistics(model)
    if _is_known(model):
        return model
    if isinstance(model, fx.GraphModule):
        return _edited(model)
    seen = object.__new__(_seen_as_classifier(type(model)))
    seen.__dict__ = model.__dict__  # the same network, with another forward pass
    return seen


def logits_of(output: object) -> Tensor:
    """The logits among the outputs of a network.

    Raises:
        ValueError: there are none; says what came out.
    """
    if isinstance(output, Tensor | fx.Proxy | fx.Node):
        return output
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    if isinstance(output, Mapping) and "logits" in output:
        return logits_of(output["logits"])
    if isinstance(output, tuple | list) and output:
        return logits_of(output[0])
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise ValueError(
        "expected logits from the network: a tensor, .logits, ['logits'] or the first of a tuple, got "
        f"{type(output).__name__}{keys}; put the network into a module that returns its logits"
    )


def _unwrapped(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """The module without wrappers, in its parts, too; shallow copies where a part changes, itself if none does."""
    if id(module) in done:
        return done[id(module)]
    original = module
    while (name := _WRAPPERS.get(type(module).__name__)) and name in module._modules:
        module = module._modules[name]
    parts = {name: part if part is None else _unwrapped(part, done) for name, part in module._modules.items()}
    same = all(part is module._modules[name] for name, part in parts.items())
    if not same or module._compiled_call_impl is not None:
        plain = object.__new__(type(module))
        plain.__dict__ = {**vars(module), "_modules": parts, "_compiled_call_impl": None}
        module = plain
    done[id(original)] = module
    return module


def _check_arguments(model: nn.Module) -> None:
    """Raise unless the forward pass can be called with an image alone."""
    first, *others = inspect.signature(model.forward).parameters.values() or [None]
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        raise ValueError(
            f"expected the image as first argument of {type(model).__name__}.forward, got "
            f"{f'{first} by name only' if first else 'no argument'}; put it into a module with forward(self, x)"
        )
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [one.name for one in others if one.default is one.empty and one.kind not in variable]
    if required:
        raise ValueError(
            f"expected {type(model).__name__}.forward to need the image alone, it also requires {', '.join(required)}; "
            "give them defaults, or put the network into a module that passes them"
        )


def _at_least_float32(model: nn.Module) -> nn.Module:
    narrow = {str(t.dtype).removeprefix("torch.") for t in model.parameters() if t.dtype in _NARROW}
    if not narrow:
        return model
    warnings.warn(f"weights are {' and '.join(sorted(narrow))}: computed in a float32 copy", stacklevel=3)
    return parametrizations.copied(model).float()


def _warn_of_batch_statistics(model: nn.Module) -> None:
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    without = [name for name in norms if model.get_submodule(name).running_mean is None]
    if without:
        warnings.warn(
            f"BatchNorm without running statistics: {', '.join(without)}; each batch is normalized by itself, so "
            "logits depend on the other images of the batch, and nothing is folded",
            stacklevel=3,
        )


def _is_known(model: nn.Module) -> bool:
    """Whether a network certainly returns one tensor, in float32, without ``view`` and further arguments."""
    if hasattr(type(model), "_seen"):
        return True
    if isinstance(model, fx.GraphModule):
        *inputs, output = (node for node in model.graph.nodes if node.op in ("placeholder", "output"))
        views = any(node.target in layers.VIEWS for node in model.graph.nodes)
        return len(inputs) == 1 and isinstance(output.args[0], fx.Node) and not views
    parts = [part for name, part in model.named_modules() if "parametrizations" not in name.split(".")]
    kinds = [parametrize.type_before_parametrizations(part).__module__ for part in parts]
    if _is_double(model) or not all(kind.startswith(("torch.nn.", "rqlib.")) for kind in kinds):
        return False
    while isinstance(model, nn.Sequential) and len(model):
        model = model[-1]
    return not isinstance(model, nn.RNNBase | nn.MultiheadAttention)


def _is_double(model: nn.Module) -> bool:
    tensors = [tensor for tensor in model.parameters() if tensor.is_floating_point()]
    return bool(tensors) and all(tensor.dtype == torch.float64 for tensor in tensors)


@functools.cache
def _seen_as_classifier(kind: type) -> type:
    """The subclass of a network's class whose forward pass takes one image and returns logits."""
    if kind.__module__ == parametrize.__name__:  # torch takes its first base for the class without parametrizations
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        return type(kind)(kind.__name__, (_seen_as_classifier(kind.__bases__[0]),), own)

    def forward(self, x: Tensor) -> Tensor:
        with _Reshaping():
            own = x if isinstance(x, fx.Proxy) else x.clone()  # some networks normalize the image in place
            return logits_of(kind.forward(self, own.double() if _is_double(self) else own))

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (kind,), {"forward": forward, "_seen": True, **names})


def _edited(model: fx.GraphModule) -> fx.GraphModule:
    """The same for a network that is a graph already: its graph is changed, in a copy."""
    graph = copy.deepcopy(model.graph)
    _, *others = graph.find_nodes(op="placeholder")
    for argument in others:
        bound = {argument: argument.args[0] if argument.args else None}
        for node in list(argument.users):
            node.args, node.kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda part, bound=bound: bound.get(part, part)
            )
        graph.erase_node(argument)
    layers.reshape_views(graph)
    (output,) = graph.find_nodes(op="output")
    output.args = (logits_of(output.args[0]),)
    return fx.GraphModule(model, graph, type(model).__name__)


class _Reshaping(TorchFunctionMode):
    """Inside the block, ``view`` of a shape also works where it has to copy, as ``reshape`` does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.view and not kwargs and not isinstance(args[1], torch.dtype):
            return args[0].reshape(*args[1:])
        if function is Tensor.view_as:
            return args[0].reshape_as(args[1])
        return function(*args, **(kwargs or {}))


class _Scripted(nn.Module):
    """A network of TorchScript, of which no other class can be derived."""

    _seen = True

    def __init__(self, network: torch.jit.ScriptModule):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network(x))
