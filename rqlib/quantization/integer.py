"""The integer form of a quantized network: it computes with codes, as hardware does.

A code counts the steps of a format: ``value = code * scale * unit``. A convolution or linear layer multiplies codes and
sums the products without rounding. Only then is the sum requantized: multiplied by ``s_w s_x / s_o``, added to the
bias, clipped, and rounded to a code of the output. Sums, ReLU, pools and flattening work on codes, too. Operations that
integer hardware does not have, such as a sigmoid or a BatchNorm that could not be folded, work on values: codes are
turned into values before them and values into codes after them.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from rqlib.core import parametrizations
from rqlib.quantization import fake_quantize, int8, points
from rqlib.quantization.fake_quantize import Quantized
from rqlib.quantization.formats import Format
from rqlib.quantization.requantize import Requantize, Value, unit

ARITHMETIC = ("float64", "float32", "int8")


def lower(network: nn.Module, *, arithmetic: str = "float64") -> fx.GraphModule:
    """The integer form of a network made by `quantization.ptq` with quantized activations.

    It takes pixels and returns logits. Its modules ``quantizers.NAME`` return codes, each worth
    ``quantizers.NAME.value_of_code``. It has no gradient; to attack or to train, use the network itself.

    In float64 both agree to one step of the format at every quantized signal. In float32 a value close to the middle
    between two codes may be rounded to the other one, and later values may differ with it.

    Args:
        arithmetic: how codes are multiplied and summed.
            float64: exact up to 53 bits; the reference.
            float32: codes are exact, sums are rounded to 24 bits.
            int8: 8-bit integer instructions with exact sums in the convolutions whose codes fit (`int8.fits`),
            float32 in the others. The machine must have them (`int8.available`).

    Raises:
        ValueError: unknown arithmetic, or a network without quantized activations.
        RuntimeError: int8 on a machine that does not have it.
    """
    if arithmetic not in ARITHMETIC:
        raise ValueError(f"expected arithmetic {' | '.join(ARITHMETIC)}, got {arithmetic!r}")
    if arithmetic == "int8" and not int8.available():
        raise RuntimeError("this machine has no exact 8-bit convolutions; arithmetic='float32' gives the same codes")
    quantizers = network.quantizers.children() if hasattr(network, "quantizers") else []
    if not any(isinstance(quantizer, Quantized) for quantizer in quantizers):
        raise ValueError(
            "expected a network of quantization.ptq with quantized activations: without them it has no codes"
        )
    return _Lowering(network, arithmetic).run()


def best_arithmetic(format: Format, device: torch.device) -> str:
    """The fastest arithmetic of a device that holds every code of a format exactly: int8 | tf32 | float32.

    int8, on a processor that has it, for whole numbers from -127 to 127: INT up to 8 bits, POT up to 4 bits,
    FLOAT_n_E2 up to 7 bits. tf32, on a GPU, for up to 11 significant bits: `lower` in float32 under
    ``runtime.tf32(True)``.
    """
    if device.type == "cuda":
        return "tf32" if format.significant_bits <= 11 else "float32"
    return "int8" if format.max / format.unit <= int8.LARGEST and int8.available() else "float32"


@dataclass(frozen=True)
class _Signal:
    """How the new graph represents a value of the network: ``clip(node * scale + offset, low, high)``.

    Attributes:
        scale: None if the node holds the value itself; one number, and no offset, if it holds codes.
        sum: whether the node is a sum of codes that nothing else reads.
        largest: the largest magnitude of the codes.
        nonnegative: whether no code is negative.
    """

    node: fx.Node
    scale: Tensor | None = None
    offset: Tensor | None = None
    low: float = -torch.inf
    high: float = torch.inf
    sum: bool = False
    largest: float = torch.inf
    nonnegative: bool = False

    @property
    def is_scaled(self) -> bool:
        """Whether the value is the node times one number, so that operations like pools can work on the node."""
        clipped = self.low > -torch.inf or self.high < torch.inf
        return self.scale is not None and self.scale.numel() == 1 and self.offset is None and not clipped


class _Lowering:
    """One pass over a quantized network's graph: ``signals`` maps its nodes to what represents them in the new one."""

    def __init__(self, network: fx.GraphModule, arithmetic: str):
        self.network, self.arithmetic = network, arithmetic
        self.dtype = torch.float64 if arithmetic == "float64" else torch.float32
        self.graph, self.parts = fx.Graph(), {}
        self.signals: dict[fx.Node, _Signal] = {}

    def run(self) -> fx.GraphModule:
        for node in self.network.graph.nodes:
            self.signals[node] = self._lower(node)
        return fx.GraphModule(self.parts, self.graph, "Integer").eval()

    def _lower(self, node: fx.Node) -> _Signal:
        inputs = [self.signals[source] for source in node.all_input_nodes]
        kind, scaled = points.kind(self.network, node), all(signal.is_scaled for signal in inputs)
        if node.op == "placeholder":
            return _Signal(self.graph.call_method("to", (self.graph.node_copy(node), self.dtype)))
        if node.op == "call_module" and isinstance(self.network.get_submodule(node.target), Quantized):
            return self._requantize(node, inputs[0])
        if kind == points.WEIGHTED and scaled:
            return self._multiply(node, inputs[0])
        if kind == points.SUM and scaled and len(inputs) == 2:
            return self._add(*inputs, node.kwargs.get("alpha", 1))
        if kind == points.ACTIVATION and inputs[0].sum and points.bounds(self.network, node):
            low, high = points.bounds(self.network, node)
            return replace(inputs[0], low=low, high=high)
        if points.is_identity(self.network, node):
            return inputs[0]
        if inputs and scaled and (kind in (points.KEEP, points.AVERAGE) or points.is_relu(self.network, node)):
            return self._keep(node, inputs[0])
        if points.is_shape(node):
            return _Signal(self._copy(node, lambda source: self.signals[source].node))
        return _Signal(self._copy(node, self._value))

    def _requantize(self, node: fx.Node, signal: _Signal) -> _Signal:
        quantizer = self.network.get_submodule(node.target)
        step = quantizer.scale.double() * unit(quantizer.format)
        scale = torch.ones_like(step) if signal.scale is None else signal.scale
        part = Requantize(
            quantizer.format,
            (scale / step).to(self.dtype),
            None if signal.offset is None else (signal.offset / step).to(self.dtype),
            low=signal.low / step.item(),
            high=signal.high / step.item(),
            value_of_code=step.item(),
            overwrite=signal.sum,
        )
        codes = self._call(node.target, part, signal.node)
        largest = max(-part.low, part.high) if part.unit == quantizer.format.unit else torch.inf
        return _Signal(codes, step, largest=largest, nonnegative=part.low >= 0)

    def _multiply(self, node: fx.Node, signal: _Signal) -> _Signal:
        layer = self.network.get_submodule(node.target)
        codes, scale = weight_codes(layer)
        channels = (-1, *[1] * (codes.dim() - 2))  # so that one number per channel broadcasts against the sums
        part = parametrizations.bake(layer)
        part.weight, part.bias = nn.Parameter(codes.to(self.dtype), requires_grad=False), None
        if self.arithmetic == "int8" and int8.fits(part, signal.largest):
            part = int8.Conv2d(part, nonnegative=signal.nonnegative)
        offset = None if layer.bias is None else layer.bias.detach().double().view(channels)
        scale = signal.scale * (scale if scale.numel() == 1 else scale.view(channels))
        return _Signal(self._call(node.target, part, signal.node), scale, offset, sum=True)

    def _add(self, first: _Signal, second: _Signal, alpha: float) -> _Signal:
        ratio = alpha * (second.scale / first.scale).item()
        total = self.graph.call_function(torch.add, (first.node, second.node), {"alpha": ratio})
        return _Signal(total, first.scale, sum=True)

    def _keep(self, node: fx.Node, signal: _Signal) -> _Signal:
        """An operation that may come before or after scaling: pools, flattening, ReLU. It works on the codes."""
        moved = self._copy(node, lambda source: self.signals[source].node)
        if points.kind(self.network, node) == points.AVERAGE:  # means of codes are not whole numbers
            return _Signal(moved, signal.scale)
        nonnegative = signal.nonnegative or points.is_relu(self.network, node)
        return _Signal(moved, signal.scale, largest=signal.largest, nonnegative=nonnegative)

    def _value(self, source: fx.Node) -> fx.Node:
        """The node that holds the value of a signal."""
        signal = self.signals[source]
        if signal.scale is None:
            return signal.node
        offset = None if signal.offset is None else signal.offset.to(self.dtype)
        part = Value(signal.scale.to(self.dtype), offset, signal.low, signal.high)
        return self._call(f"values.{source.name}", part, signal.node)

    def _copy(self, node: fx.Node, source_of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The same operation in the new graph, with its tensors in the type of the arithmetic."""
        if node.op == "call_module":
            part = parametrizations.bake(self.network.get_submodule(node.target))
            self.parts[node.target] = part.to(self.dtype)
        elif node.op == "get_attr":
            constant = operator.attrgetter(node.target)(self.network).detach()
            self.parts[node.target] = constant.to(self.dtype) if constant.is_floating_point() else constant
        return self.graph.node_copy(node, source_of)

    def _call(self, name: str, part: nn.Module, source: fx.Node) -> fx.Node:
        """Call a module under this name in the new graph."""
        while name in self.parts:  # a layer that is called again has an input of another scale
            name += "_again"
        self.parts[name] = part
        return self.graph.call_module(name, (source,))


def weight_codes(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The codes of a layer's weight, and what one code is worth: float64, one number or one per output channel.

    A weight that is not quantized is its own code, worth 1.
    """
    weight, quantizer = layer.weight.detach(), fake_quantize.quantizer(layer)
    if quantizer is None:
        return weight, torch.ones(1, dtype=torch.float64, device=weight.device)
    worth = unit(quantizer.format)
    return quantizer.format.round(weight / quantizer.scale) / worth, quantizer.scale.double().flatten() * worth
