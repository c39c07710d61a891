"""Operations that change their input in place, rewritten so that none does; whoever reads later reads the result.

In ``x = conv(x); y = relu_(x); return y + x`` the sum reads x after the ReLU has changed it. An integer form, in which
signals are rounded between operations, has no memory to share. So the graph is made to say what is meant.
"""

import itertools
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx


def remove(network: fx.GraphModule, x: Tensor) -> None:
    """Replace each operation of a graph that changes its input in place by one that does not, in the graph itself.

    Whatever is read later through another name of the same memory (an identity, a dropout in eval mode, a flattening
    of the same shape) is read from the result. The network runs once on x, a batch, to learn which names share memory.
    Two things are not seen here, so compare the result with the original on a sample (`core.derived.check`): a view of
    another shape that is taken before the change and read after it, and ``x += y``, which torch.fx records as a sum.

    Raises:
        ValueError: an operation is not known to have a form that leaves its input alone.
    """
    changing = [node for node in network.graph.nodes if _is_in_place(network, node)]
    if not changing:
        return
    other_names = _other_names(network, x)
    order = {node: index for index, node in enumerate(network.graph.nodes)}
    for node in changing:
        for name in other_names(node):
            for user in [user for user in name.users if order[user] > order[node]]:
                user.replace_input_with(name, node)
        _leave_input_alone(network, node)
    network.recompile()


def _is_in_place(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(network.get_submodule(node.target), "inplace", False) is True
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    if node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None:
        return True
    return _name(node.target).endswith("_") and not hasattr(operator, _name(node.target))  # operator.and_ is none


def _leave_input_alone(network: fx.GraphModule, node: fx.Node) -> None:
    """Replace an operation by its form that does not change its input."""
    if node.op == "call_module":
        network.get_submodule(node.target).inplace = False
    elif "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_method" and hasattr(Tensor, node.target.rstrip("_")):
        node.target = node.target.rstrip("_")
    elif node.op == "call_function" and (plain := _plain(node.target)) and "out" not in node.kwargs:
        node.target = plain
    else:
        raise ValueError(
            f"operation {node.name} ({_name(node.target)}) changes a tensor in place and has no other form that is "
            "known here; write it without changing its input, or quantize weights alone (activations=False)"
        )


def _plain(function: Callable) -> Callable | None:
    """The function of torch that returns what an in-place one writes; None if there is none."""
    name = _name(function).rstrip("_")
    return getattr(torch, name, None) or getattr(F, name, None)


def _name(target: Callable | str) -> str:
    return getattr(target, "__name__", str(target))


@torch.no_grad()
def _other_names(network: fx.GraphModule, x: Tensor) -> Callable[[fx.Node], list[fx.Node]]:
    """A function from a node to the nodes before it whose values are the same elements of the same memory."""
    values: dict[fx.Node, Tensor] = {}  # all of them are kept, so that no memory is used twice

    class Watching(fx.Interpreter):
        def run_node(self, node: fx.Node):
            value = super().run_node(node)
            if isinstance(value, Tensor):
                values[node] = value
            return value

    Watching(network).run(x.clone())

    def place(node: fx.Node) -> tuple:
        value = values[node]
        return value.data_ptr(), value.shape, value.stride()

    def before(node: fx.Node) -> list[fx.Node]:
        earlier = itertools.takewhile(lambda other: other is not node, values)
        return [other for other in earlier if place(other) == place(node)]

    return before
