"""Which channels of a network stay or go together, read off its graph, and their removal from it.

Every channel of every signal has a number; what an addition, a BatchNorm or a depthwise convolution ties
together has the same. A layer writes the numbers of its outputs and reads those of its inputs.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from rqlib.core import layers, runtime

_KEEPING_ZERO = (nn.Dropout, nn.Identity, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Modules that treat each channel alone and map 0 to 0."""
_ADDITIONS = ("add", "iadd", "add_")


@dataclass(frozen=True)
class Channels:
    """The numbers of a network's channels.

    Attributes:
        writes: name of each convolution, linear layer and BatchNorm -> numbers of its outputs, int64 (O,).
        reads: name of each convolution and linear layer -> numbers of its inputs, int64 (I,).
        fixed: of each number, whether its channels must stay (the image, the logits, what is not understood), bool.
    """

    writes: dict[str, Tensor]
    reads: dict[str, Tensor]
    fixed: Tensor

    def pools(self) -> list[Tensor]:
        """Numbers that compete with each other: those of layers tied together, without what must stay."""
        joined = _Numbers()
        joined.fresh(len(self.fixed))
        for numbers in self.writes.values():
            joined.tie(numbers[:1].expand_as(numbers), numbers)
        roots = torch.tensor([joined.root(number) for number in range(len(self.fixed))])
        written = torch.zeros_like(self.fixed)
        written[torch.cat(list(self.writes.values()))] = True
        found = [(roots == root).logical_and(written).nonzero().squeeze(1) for root in roots[written].unique()]
        return [numbers for numbers in found if not self.fixed[numbers].any()]


@torch.no_grad()
def find(model: nn.Module, image: Tensor) -> Channels:
    """The numbers of a plain network's channels.

    Args:
        image: one image (1, C, H, W), only its shape matters.

    Raises:
        ValueError: torch.fx cannot trace the network.
    """
    with runtime.evaluating(model):
        follower = _Follower(fx.GraphModule(model, layers.trace(model)))
        follower.run(image.to(next(model.parameters()).device))
    return follower.found()


@torch.no_grad()
def remove(model: nn.Module, image: Tensor) -> nn.Module:
    """A copy without the channels that are 0 whatever the image; it computes the same logits.

    A channel goes if every filter that writes to it, its bias and its BatchNorm are 0. Of channels that would all
    go one stays.

    Args:
        model: with plain weights (`parametrizations.bake`).
        image: as `find`.

    Raises:
        ValueError: as `find`.
    """
    channels, removed = find(model, image), copy.deepcopy(model)
    stays = channels.fixed.clone()
    for name, numbers in channels.writes.items():
        layer = model.get_submodule(name)
        parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        stays[numbers] |= torch.stack([p.flatten(1).any(1) if p.dim() > 1 else p != 0 for p in parameters]).any(0).cpu()
    for numbers in channels.pools():
        stays[numbers[0]] |= not stays[numbers].any()
    for name, numbers in channels.writes.items():
        reads = channels.reads.get(name)
        _shrink(removed.get_submodule(name), stays[numbers], None if reads is None else stays[reads])
    return removed


def _shrink(layer: nn.Module, outputs: Tensor, inputs: Tensor | None) -> None:
    """Leave only these outputs and inputs (bool masks) in a layer, in place."""
    depthwise = isinstance(layer, layers.CONVOLUTIONS) and layer.groups > 1
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.dim():
            kept = tensor.data[outputs]
            tensor.data = kept[:, inputs] if tensor.dim() > 1 and not depthwise else kept
    written, read = int(outputs.sum()), None if inputs is None else int(inputs.sum())
    if isinstance(layer, layers.NORMALIZATIONS):
        layer.num_features = written
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = read, written
    else:
        layer.in_channels, layer.out_channels = read, written
        layer.groups = written if depthwise else layer.groups


class _Numbers:
    """Numbers that can be tied together (union-find)."""

    def __init__(self):
        self.parents: list[int] = []

    def fresh(self, count: int) -> Tensor:
        start = len(self.parents)
        self.parents += range(start, start + count)
        return torch.arange(start, start + count)

    def root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = number = self.parents[self.parents[number]]
        return number

    def tie(self, one: Tensor, other: Tensor) -> None:
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            a, b = self.root(a), self.root(b)
            self.parents[max(a, b)] = min(a, b)


class _Follower(fx.Interpreter):
    """Runs a network and notes the numbers of every signal's channels."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.numbers, self.stuck = _Numbers(), []
        self.signals: dict[fx.Node, Tensor] = {}
        self.writes: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}

    def found(self) -> Channels:
        """The numbers, tied ones made one, counted anew from 0."""
        roots = torch.tensor([self.numbers.root(number) for number in range(len(self.numbers.parents))])
        distinct, numbers = roots.unique(return_inverse=True)
        fixed = torch.zeros(len(distinct), dtype=torch.bool)
        for part in self.stuck:
            fixed[numbers[part]] = True
        writes, reads = ({name: numbers[part] for name, part in kind.items()} for kind in (self.writes, self.reads))
        return Channels(writes, reads, fixed)

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        signals = [self.signals[part] for part in node.all_input_nodes if part in self.signals]
        follow = getattr(self, f"_{node.op}", self._unknown)
        numbers = follow(node, value, signals) if isinstance(value, Tensor) and value.dim() > 1 else None
        if numbers is None or node.op == "output":
            self.stuck += signals
            numbers = self._fixed(value)
        if numbers is not None:
            self.signals[node] = numbers
        return value

    def _call_module(self, node: fx.Node, value: Tensor, signals: list[Tensor]) -> Tensor | None:
        layer, (signal, *_) = self.module.get_submodule(node.target), signals
        if node.target in self.writes:
            self.stuck += [of[node.target] for of in (self.writes, self.reads) if node.target in of]
            return None  # called again: its filters serve two places
        if isinstance(layer, nn.Flatten):
            return signal.repeat_interleave(value.shape[1] // len(signal))
        if isinstance(layer, layers.NORMALIZATIONS) and layer.affine:
            self.writes[node.target] = signal
            return signal
        if isinstance(layer, layers.WEIGHTED):
            return self._weighted(node.target, layer, value, signal)
        return signal if isinstance(layer, _KEEPING_ZERO) else None

    def _weighted(self, name: str, layer: nn.Module, value: Tensor, signal: Tensor) -> Tensor | None:
        groups = getattr(layer, "groups", 1)
        depthwise = groups == len(signal) == value.shape[1] > 1
        if (isinstance(layer, nn.Linear) and value.dim() != 2) or (groups > 1 and not depthwise):
            return None
        self.reads[name] = signal
        self.writes[name] = signal if depthwise else self.numbers.fresh(value.shape[1])
        return self.writes[name]

    def _call_function(self, node: fx.Node, value: Tensor, signals: list[Tensor]) -> Tensor | None:
        name = getattr(node.target, "__name__", str(node.target))
        if name == "cat" and value.shape[1] == sum(map(len, signals)):
            return torch.cat(signals)
        if name in _ADDITIONS and len(signals) == 2 and len(signals[0]) == len(signals[1]) == value.shape[1]:
            self.numbers.tie(*signals)
            return signals[0]
        if name == "flatten":
            return signals[0].repeat_interleave(value.shape[1] // len(signals[0]))
        return signals[0] if name in ("relu", "relu6", "adaptive_avg_pool2d") else None

    def _output(self, node: fx.Node, value: Tensor, signals: list[Tensor]) -> None:
        return None

    _unknown = _placeholder = _get_attr = _call_method = _output

    def _fixed(self, value) -> Tensor | None:
        if not (isinstance(value, Tensor) and value.dim() > 1):
            return None
        fresh = self.numbers.fresh(value.shape[1])
        self.stuck.append(fresh)
        return fresh
