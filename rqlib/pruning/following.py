"""The channels of a network, followed through its graph from the layers that write them to those that read them.

What an operation does with channels is not known by its name: it is tried (`probing`). Where each channel of its
output depends on the same channel of its input only, channels pass. Inputs that meet channel by channel, as in an
addition, are tied. Everything else makes its channels stay.
"""

from collections.abc import Sequence
from functools import partial

import scipy
import torch
from torch import Tensor, fx, nn

from rqlib.core import layers, parametrizations, runtime
from rqlib.pruning import probing
from rqlib.pruning.pools import STAYS, Channels, groups
from rqlib.pruning.probing import CONSTANT
from rqlib.pruning.signals import Signal, along, channel_axis, size, spread, staying

NORMS = (*layers.NORMALIZATIONS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""Layers whose own weights and biases are masked together with the channels that pass them."""

_SHAPING = ("view", "reshape", "unflatten", "expand", "narrow")
_AGAIN, _SHARED, _MEETS = (
    "a layer that is called again",
    "a weight that is used elsewhere, too",
    "an operation with channels that stay",
)


@torch.no_grad()
def follow(model: nn.Module, image: Tensor) -> Channels:
    """The numbers of the channels of a plain network; only the shape of the image (1, C, H, W) matters.

    Raises:
        ValueError: torch.fx cannot trace the network.
    """
    tensor = next(model.parameters())
    model = model if tensor.device.type == "cpu" else parametrizations.copied(model).cpu()
    with runtime.evaluating(model):
        follower = _Follower(model)
        follower.run(torch.zeros(2, *image.shape[1:], dtype=tensor.dtype))
    return follower.found()


class _Follower(fx.Interpreter):
    """Runs a network and notes the numbers of the channels of every signal."""

    def __init__(self, model: nn.Module):
        super().__init__(fx.GraphModule(model, layers.trace(model)))
        self.owners = _owners(model)
        self.ties = scipy.cluster.hierarchy.DisjointSet([STAYS])  # of all numbers
        self.stuck: list[tuple[Tensor, str]] = []  # numbers whose channels must stay, and why
        self.signals: dict[fx.Node, Signal] = {}
        self.varying: set[fx.Node] = set()  # what depends on the image
        self.writes: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}
        self.carried: dict[str, tuple[int, Tensor]] = {}
        self.resting: dict[str, Tensor] = {}
        self.read_directly: set[int] = set()  # tensors that the forward pass itself reads
        self.tail = _tail(self.module)

    def run_node(self, node: fx.Node):
        inputs = {part: self.env[part] for part in node.all_input_nodes}
        value = super().run_node(node)
        if node.op == "placeholder" or self.varying & inputs.keys():
            self.varying.add(node)
        parts = {part: tensor for part, tensor in inputs.items() if isinstance(tensor, Tensor)}
        signals = [self.signals.get(part) or staying(tensor) for part, tensor in parts.items()]
        signal = None
        if node.op == "get_attr" and isinstance(value, Tensor):
            signal = self._tensor(node.target, value)
        elif node.op == "output":
            self._stick(signals, "")
        elif any(part.pooled for part in signals) or layers.is_weighted(self._layer(node)):
            signal = self._called(node, value, list(parts), signals)
        if signal is not None:
            self.signals[node] = signal
        for done in self.user_to_last_uses.get(node, ()):
            self.signals.pop(done, None)
        return value

    def found(self) -> Channels:
        """What was noted; numbers that are tied together become one, counted from 0."""
        self._tie_shared_tensors()
        numbers = groups(self.ties)
        fixed, reasons = torch.zeros(self.ties.n_subsets, dtype=torch.bool), {}
        fixed[STAYS] = True
        for part, reason in self.stuck:
            fixed[numbers[part]] = True
            reasons |= {number: reason for number in numbers[part].tolist() if reason and number not in reasons}
        writes, reads = ({name: numbers[part] for name, part in kind.items()} for kind in (self.writes, self.reads))
        carried = {name: (axis, numbers[part]) for name, (axis, part) in self.carried.items()}
        return Channels(writes, reads, carried, self.resting, fixed, reasons)

    def _layer(self, node: fx.Node) -> nn.Module | None:
        """The layer that a node calls."""
        return self.module.get_submodule(node.target) if node.op == "call_module" else None

    def _called(self, node: fx.Node, value, parts: list[fx.Node], signals: list[Signal]) -> Signal | None:
        """The signal that an operation makes of others; None if it makes no tensor."""
        layer = self._layer(node)
        name = type(layer).__name__ if layer is not None else getattr(node.target, "__name__", str(node.target))
        single = len(torch.cat([signal.numbers.unique() for signal in signals]).unique()) <= 2
        reason = "" if node in self.tail or single else name
        if not isinstance(value, Tensor):
            if not _is_shape(value):
                self._stick(signals, reason)
            return None
        if layers.is_weighted(layer):
            return self._weighted(node.target, layer, value, signals[0], reason)
        run = partial(self._again, node, parts)
        numbers = signals[0].numbers if _is_norm(layer) else self._numbers(node, run, value, parts, signals)
        if numbers is None or not self._carries(node, layer, numbers):
            self._stick(signals, reason)
            return staying(value)
        return self._passed(run, parts, signals, numbers, layer, name)

    def _numbers(self, node: fx.Node, run, value: Tensor, parts: list[fx.Node], signals: list[Signal]) -> Tensor | None:
        """The numbers of what an operation returns; None if channels do not pass it."""
        positions = probing.movement(run, [signal.rest for signal in signals])
        if positions is not None and positions.shape == value.shape:
            return self._moved(node, positions, signals)
        return self._computed(run, parts, signals)

    def _passed(self, run, parts, signals: list[Signal], numbers: Tensor, layer, name: str) -> Signal:
        """The signal of an operation that channels pass."""
        if _is_norm(layer) and layer.affine:  # masked with its channels
            return Signal(numbers, torch.zeros(numbers.shape, dtype=signals[0].rest.dtype))
        # Changes in place reach the other signals of the same memory, as they reach the tensors.
        rests = [s.rest if part in self.signals else s.rest.clone() for part, s in zip(parts, signals, strict=True)]
        source = next((signal.source for signal in signals if signal.source), "")
        rest = run(rests)
        return Signal(numbers, rest, source or (name if rest.any() else ""))

    def _again(self, node: fx.Node, parts: list[fx.Node], tensors: Sequence[Tensor]):
        """The operation of a node with other tensors in place of its inputs."""
        given = {**self.env, **dict(zip(parts, tensors, strict=True))}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return getattr(self, node.op)(node.target, args, kwargs)

    def _moved(self, node: fx.Node, positions: Tensor, signals: list[Signal]) -> Tensor | None:
        """The numbers after an operation that only moves elements; None unless it does the same with fewer channels.

        It does if the channels keep their order, and if no number of channels is written in the code.
        """
        numbers = torch.cat([signal.numbers.flatten() for signal in signals])[positions]
        axis = channel_axis(numbers)
        if axis is None or (
            str(getattr(node.target, "__name__", node.target)) in _SHAPING and _says(node, numbers, axis)
        ):
            return None
        ends = torch.tensor([signal.numbers.numel() for signal in signals]).cumsum(0)
        used = set(torch.bucketize(positions.contiguous(), ends, right=True).unique().tolist())
        before = [_channels(signal, axis) for signal in signals]
        if any(before[which] is None for which in used):
            return None
        channels, moved = along(numbers, axis), torch.cat([before[which] for which in sorted(used)])
        if not torch.equal(moved.repeat_interleave(max(1, len(channels) // len(moved))), channels):
            return None
        for which in {*range(len(signals))} - used:  # only its shape counts, as in expand_as
            if before[which] is not None and len(before[which]) == len(channels):
                self._tie(before[which], channels, _MEETS)
        return numbers

    def _computed(self, run, parts: list[fx.Node], signals: list[Signal]) -> Tensor | None:
        """The numbers after an operation that computes each channel from itself, or from tied ones; else None."""
        if any(signal.pooled and not _can_vary(signal.rest) for signal in signals):
            return None
        varied = [part in self.varying or signal.pooled for part, signal in zip(parts, signals, strict=True)]
        given = [
            s.numbers if vary else torch.full_like(s.numbers, CONSTANT) for s, vary in zip(signals, varied, strict=True)
        ]
        rests = [signal.rest for signal in signals]
        depends = probing.dependence(run, rests, given)
        if depends is None:
            return None
        depends = torch.broadcast_tensors(*depends)
        numbers = _merged(depends)
        axis = channel_axis(numbers)
        if axis is None:
            return None
        count, from_end = numbers.shape[axis], axis - numbers.dim()
        whole = [len(signals) == 1 or size(signal.numbers, from_end) == count for signal in signals]
        if not self._meet(signals, depends, whole, axis):
            return None
        free = [which for which, vary in enumerate(varied) if vary and not whole[which]]
        if free and not probing.ignores(run, rests, free, numbers > STAYS):
            return None
        self._stick([signals[which] for which in free], "")
        return numbers

    def _meet(self, signals: list[Signal], depends: list[Tensor], whole: list[bool], axis: int) -> bool:
        """Tie the channels that meet in each channel of the output; False if they are not in the inputs' order."""
        met = []
        for signal, part, is_whole in zip(signals, depends, whole, strict=True):
            if not is_whole:
                continue  # broadcast over the channels
            reached = part.movedim(axis, 0).reshape(part.shape[axis], -1).amax(1)
            if signal.pooled:
                own_axis = channel_axis(signal.numbers)
                own = None if own_axis is None else along(signal.numbers, own_axis)
                if own is None or not torch.equal(reached[reached != CONSTANT], own[own != CONSTANT]):
                    return False
            met.append(reached if signal.pooled else torch.full_like(reached, STAYS))
        for other in met[1:]:
            self._tie(met[0], other, _MEETS)
        return bool(met)

    def _weighted(self, name: str, layer: nn.Module, value: Tensor, signal: Signal, reason: str) -> Signal:
        """A convolution or linear layer: it reads the channels of its input and writes those of its output."""
        axis = value.dim() - 1 if isinstance(layer, nn.Linear) else 1
        inputs, outputs, conv_groups = signal.numbers.shape[axis], value.shape[axis], getattr(layer, "groups", 1)
        depthwise = conv_groups == inputs > 1
        read, rest = self._read(signal, axis, layer, reason, folds=not depthwise)
        if name in self.reads:
            self._tie(self.reads[name], read, _AGAIN)
            self._stick_numbers(read[rest != self.resting[name]], _AGAIN)
        else:
            self.reads[name], self.resting[name] = read, rest
            self.writes[name] = read.repeat_interleave(outputs // inputs) if depthwise else self._fresh(outputs)
        if conv_groups > 1 and not depthwise:
            self._stick_numbers(torch.cat([read, self.writes[name]]), "grouped convolution")
        return Signal(spread(self.writes[name], axis, value.shape), torch.zeros_like(value))

    def _read(self, signal: Signal, axis: int, layer: nn.Module, reason: str, *, folds: bool) -> tuple[Tensor, Tensor]:
        """(numbers of a layer's inputs, what these are while their channels are removed), each (I,).

        With ``folds`` the constants are to become part of the layer's bias; where zeros are padded they cannot.
        """
        numbers = along(signal.numbers, axis)
        if numbers is None:
            self._stick([signal], reason)
            return torch.zeros(signal.numbers.shape[axis], dtype=torch.int64), torch.zeros(signal.numbers.shape[axis])
        numbers = numbers.clamp(min=STAYS)
        lines = signal.rest.movedim(axis, 0).reshape(len(numbers), -1)
        even = torch.isclose(lines, lines[:, :1], rtol=1e-5, atol=1e-6).all(1)
        rest = torch.where((numbers > STAYS) & torch.tensor(folds), lines[:, 0], 0)
        cannot = (rest != 0) & (~even | ~rest.isfinite() | torch.tensor(_pads_zeros(layer)))
        uneven = ~even & (numbers > STAYS) & torch.tensor(folds)
        why = f"{signal.source or 'a constant'}, after which 0 is not 0, before zero padding"
        self._stick_numbers(numbers[cannot | uneven], why)
        return numbers, torch.where(cannot | uneven, 0, rest)

    def _tensor(self, name: str, value: Tensor) -> Signal | None:
        """A parameter or buffer that the forward pass itself reads: it carries channels if it has one axis."""
        self.read_directly.add(id(value))
        axes = [axis for axis, count in enumerate(value.shape) if count > 1]
        _, owner = self.owners.get(id(value), [("", None)])[0]
        if len(axes) != 1 or not value.is_floating_point() or owner is None or layers.is_standard(owner):
            return None
        if name not in self.carried:
            self.carried[name] = axes[0], self._fresh(value.shape[axes[0]])
        axis, numbers = self.carried[name]
        return Signal(spread(numbers, axis, value.shape), value.clone())

    def _carries(self, node: fx.Node, layer: nn.Module | None, numbers: Tensor) -> bool:
        """Note the tensors of a layer that have one value per channel; False if it has others."""
        own = {} if layer is None else {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        own = {f"{node.target}.{name}": tensor for name, tensor in own.items() if tensor.numel() > 1}
        if not own:
            return True
        channels = along(numbers, 1)
        if channels is None or channel_axis(numbers) != 1 or any(t.shape != channels.shape for t in own.values()):
            return False
        channels = channels.clamp(min=STAYS)
        for name in own:
            if name in self.carried:
                self._tie(self.carried[name][1], channels, _AGAIN)
            self.carried[name] = 0, channels
        if _is_norm(layer) and layer.affine:
            self.writes[node.target] = channels
        return True

    def _tie_shared_tensors(self) -> None:
        """Tie the channels of layers that share a tensor; they stay if one of the layers is not followed."""
        for key, homes in self.owners.items():
            rows, columns = [], []
            for name, _ in homes:
                layer, _, kind = name.rpartition(".")
                followed = layer in self.reads
                rows.append(self.writes[layer] if followed else self.carried.get(name, (0, None))[1])
                columns.append(self.reads[layer] if followed and kind == "weight" else None)
            is_read = key in self.read_directly and any(name.rpartition(".")[0] in self.reads for name, _ in homes)
            for part in (rows, columns):
                self._tie_all([*part, None] if is_read else part)

    def _tie_all(self, parts: list[Tensor | None]) -> None:
        """Tie channels of the same rows or columns of one tensor; None is a layer that was not followed."""
        known = [numbers for numbers in parts if numbers is not None]
        if len(parts) < 2 or not known:
            return
        if len(known) < len(parts) or len({len(numbers) for numbers in known}) > 1:
            self._stick_numbers(torch.cat(known), _SHARED)
            return
        for other in known[1:]:
            self._tie(known[0], other, _SHARED)

    def _tie(self, one: Tensor, other: Tensor, reason: str) -> None:
        """These channels stay or go together, pair by pair; beside one that must stay, the other must stay, too."""
        for first, second in zip(one.tolist(), other.tolist(), strict=True):
            if min(first, second) > STAYS:
                self.ties.merge(first, second)
        stays = torch.minimum(one, other) <= STAYS
        self._stick_numbers(torch.maximum(one, other)[stays], reason)

    def _stick(self, signals: Sequence[Signal], reason: str) -> None:
        for signal in signals:
            self._stick_numbers(signal.numbers.unique(), reason)

    def _stick_numbers(self, numbers: Tensor, reason: str) -> None:
        self.stuck.append((numbers[numbers > STAYS], reason))

    def _fresh(self, count: int) -> Tensor:
        """So many numbers that were not used before."""
        start = len(self.ties)
        for number in range(start, start + count):
            self.ties.add(number)
        return torch.arange(start, start + count)


def _is_norm(layer: nn.Module | None) -> bool:
    return isinstance(layer, NORMS) and layers.is_standard(layer)


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Each tensor of a network, by its identity -> (name, module) of each module that holds it."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            found.setdefault(id(tensor), []).append((f"{prefix}.{name}".lstrip("."), module))
    return found


def _tail(network: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose results reach the output without passing a convolution or linear layer again."""
    tail: set[fx.Node] = set()
    for node in reversed(network.graph.nodes):
        onward = [
            user
            for user in node.users
            if user.op != "call_module" or not layers.is_weighted(network.get_submodule(user.target))
        ]
        if node.op == "output" or tail & set(onward):
            tail.add(node)
    return tail


def _merged(depends: list[Tensor]) -> Tensor:
    """The number of each element of an output: that of the input with the most channels, else of another one."""
    numbers = torch.full_like(depends[0], CONSTANT)
    for part in sorted(depends, key=lambda part: len(part.unique()), reverse=True):
        numbers = torch.where(numbers > STAYS, numbers, torch.where(part == CONSTANT, numbers, part))
    return numbers


def _channels(signal: Signal, default: int) -> Tensor | None:
    """The numbers of a signal along the axis of its channels; along the default one if all of them are the same."""
    axis = channel_axis(signal.numbers)
    if axis is None and signal.numbers.amin() == signal.numbers.amax() and default < signal.numbers.dim():
        axis = default
    return None if axis is None else along(signal.numbers, axis)


def _says(node: fx.Node, numbers: Tensor, axis: int) -> bool:
    """Whether a number of channels is written in the code of an operation."""
    said: list[int] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda part: said.append(part) if isinstance(part, int) else None)
    return numbers.shape[axis] in said


def _is_shape(value: object) -> bool:
    """Whether a value that is no tensor only tells of shapes and types."""
    parts = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(part, int | str | torch.dtype | torch.device | torch.layout | None) for part in parts)


def _can_vary(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype == torch.bool


def _pads_zeros(layer: nn.Module) -> bool:
    """Whether a layer puts zeros around its input."""
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return layer.padding == "same" or any(layer.padding)
