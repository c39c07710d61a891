"""Which channels of a network must stay or go together, found from its graph, and how they are removed from it.

Each channel of a signal gets a number. Channels that must stay or go together, because an addition, a BatchNorm or a
depthwise convolution ties them, share one number. A layer writes the numbers of its outputs and reads those of its
inputs.
"""

import copy
from dataclasses import dataclass

import torch
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, fx, nn

from rqlib.core import layers, runtime

_KEEPING_ZERO = (nn.Dropout, nn.Identity, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Modules that compute each channel from itself alone and map 0 to 0."""
_ADDITIONS = ("add", "iadd", "add_")


@dataclass(frozen=True)
class Channels:
    """The numbers of a network's channels.

    Attributes:
        writes: name of each convolution, linear layer and BatchNorm -> numbers of its outputs, int64 (O,).
        reads: name of each convolution and linear layer -> numbers of its inputs, int64 (I,).
        fixed: for each number, whether its channels must stay, bool: those of the image, of the logits, and of all
            that passes an operation which is not understood.
    """

    writes: dict[str, Tensor]
    reads: dict[str, Tensor]
    fixed: Tensor

    def pools(self) -> list[Tensor]:
        """Groups of numbers that compete with each other (int64): of tied layers, if all may be removed."""
        joined = DisjointSet(range(len(self.fixed)))
        for numbers in self.writes.values():
            first, *others = numbers.tolist()
            for number in others:
                joined.merge(first, number)
        groups = _groups(joined)
        written = torch.zeros_like(self.fixed)
        written[torch.cat(list(self.writes.values()))] = True
        found = [((groups == group) & written).nonzero().squeeze(1) for group in groups[written].unique()]
        return [numbers for numbers in found if not self.fixed[numbers].any()]


@torch.no_grad()
def find(model: nn.Module, image: Tensor | None) -> Channels:
    """The numbers of the channels of a plain network.

    Only the shape of the image (1, C, H, W) matters. A ValueError says that the image is missing, or why torch.fx
    cannot trace the network.
    """
    if image is None:
        raise ValueError("structure filters follows the channels through the network: expected image (1, C, H, W)")
    with runtime.evaluating(model):
        follower = _Follower(fx.GraphModule(model, layers.trace(model)))
        follower.run(image.to(next(model.parameters()).device))
    return follower.found()


@torch.no_grad()
def remove(model: nn.Module, image: Tensor) -> nn.Module:
    """A copy without the channels that are 0 for every image; it computes the same logits.

    A channel is removed if every filter that writes to it, its bias and its BatchNorm are 0. Where all channels of
    a group would be removed, one of them stays. The weights must be plain (`parametrizations.bake`); image and errors
    as for `find`.
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
    """Keep only these outputs and inputs of a layer (bool masks), in place."""
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


def _groups(ties: DisjointSet) -> Tensor:
    """For each of the elements 0, 1, ... its set, int64 (N,); sets are counted in order of their smallest element."""
    groups = [0] * len(ties)
    for group, members in enumerate(sorted(ties.subsets(), key=min)):
        for member in members:
            groups[member] = group
    return torch.tensor(groups)


class _Follower(fx.Interpreter):
    """Runs a network and notes the numbers of the channels of every signal."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.ties = DisjointSet()  # of all numbers
        self.stuck: list[Tensor] = []  # numbers whose channels must stay
        self.signals: dict[fx.Node, Tensor] = {}
        self.writes: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}

    def found(self) -> Channels:
        """What was noted; numbers that are tied together become one, counted from 0."""
        numbers = _groups(self.ties)
        fixed = torch.zeros(self.ties.n_subsets, dtype=torch.bool)
        for part in self.stuck:
            fixed[numbers[part]] = True
        writes, reads = ({name: numbers[part] for name, part in kind.items()} for kind in (self.writes, self.reads))
        return Channels(writes, reads, fixed)

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        signals = [self.signals[part] for part in node.all_input_nodes if part in self.signals]
        follow = {"call_module": self._module, "call_function": self._function}.get(node.op)
        is_signal, numbers = isinstance(value, Tensor) and value.dim() > 1, None
        if is_signal and follow is not None:
            numbers = follow(node, value, signals)
        if numbers is None:
            self.stuck += signals
        if numbers is None and is_signal:
            numbers = self._fresh(value.shape[1])
            self.stuck.append(numbers)
        if numbers is not None:
            self.signals[node] = numbers
        return value

    def _module(self, node: fx.Node, value: Tensor, signals: list[Tensor]) -> Tensor | None:
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
        self.writes[name] = signal if depthwise else self._fresh(value.shape[1])
        return self.writes[name]

    def _function(self, node: fx.Node, value: Tensor, signals: list[Tensor]) -> Tensor | None:
        name = getattr(node.target, "__name__", str(node.target))
        if name == "cat" and value.shape[1] == sum(map(len, signals)):
            return torch.cat(signals)
        if name in _ADDITIONS and len(signals) == 2 and len(signals[0]) == len(signals[1]) == value.shape[1]:
            for one, other in zip(signals[0].tolist(), signals[1].tolist(), strict=True):
                self.ties.merge(one, other)
            return signals[0]
        if name == "flatten":
            return signals[0].repeat_interleave(value.shape[1] // len(signals[0]))
        return signals[0] if name in ("relu", "relu6", "adaptive_avg_pool2d") else None

    def _fresh(self, count: int) -> Tensor:
        """So many numbers that were not used before."""
        start = len(self.ties)
        for number in range(start, start + count):
            self.ties.add(number)
        return torch.arange(start, start + count)
