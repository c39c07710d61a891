"""The integer form of a quantized network: it computes with codes, as hardware does.

A code counts the steps of a format: ``value = code * scale * unit``. A convolution or linear layer multiplies codes and
sums the products without rounding. Only then is the sum requantized: multiplied by ``s_w s_x / s_o``, added to the
bias, clipped, and rounded to a code of the output. A BatchNorm that could not be folded only changes these factors, one
per channel, and the limits of the clipping. Sums, ReLU, pools and flattening work on codes, too. Operations that
integer hardware does not have, such as a sigmoid, work on values: codes are turned into values before them and values
into codes after them.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from rqlib.core import layers, parametrizations
from rqlib.quantization import agreement, fake_quantize, int8, points
from rqlib.quantization.fake_quantize import Quantized
from rqlib.quantization.requantize import Requantize, Value, unit

ARITHMETIC = ("float64", "float32", "int8")


def lower(network: nn.Module, *, arithmetic: str = "float64", batch_size: int = 100) -> fx.GraphModule:
    """The integer form of a network made by `quantization.ptq` with quantized activations.

    It takes pixels and returns logits. Its modules ``quantizers.NAME`` return codes, each worth
    ``quantizers.NAME.value_of_code``. It has no gradient; to attack or to train, use the network itself.

    It is compared with the network on the few images that the network keeps from its calibration, in a batch of
    these and in one of ``batch_size`` (`agreement.check`): given the same signals before, every quantized signal is the
    same to one step of its format. A value close to the middle between two codes may be rounded to the other one, and
    later values may differ with it; in float32 more often than in float64.

    Args:
        arithmetic: how codes are multiplied and summed.
            float64: exact up to 53 bits; the reference.
            float32: codes are exact, sums are rounded to 24 bits, and biases so finely that below 2^24 they are exact.
            int8: 8-bit integer instructions with exact sums in the convolutions whose codes fit (`int8.fits`),
            float32 in the others. The machine must have them (`int8.available`).
        batch_size: at which the form will be used.

    Raises:
        ValueError: unknown arithmetic, or a network without quantized activations; the integer form computes something
            else than the network (`core.derived.NotEqual`), which names the first signal that differs.
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
    lowered = _Lowering(network, arithmetic).run()
    x = network.meta["calibration_sample"].to(next(network.parameters()).device).float()
    agreement.check(_in_float64(network), lowered, x, arithmetic=arithmetic, batch_size=batch_size)
    return lowered


def _in_float64(network: nn.Module) -> nn.Module:
    """A copy in float64 whose weights are whole codes times what a code is worth, exactly."""
    exact = parametrizations.bake(network).double()
    for name, layer in layers.weighted_layers(network):
        codes, worth = weight_codes(layer)
        exact.get_submodule(name).weight.data = codes.double() * worth.view(-1, *[1] * (codes.dim() - 1))
    return exact


def best_arithmetic(network: nn.Module, device: torch.device) -> str:
    """The fastest arithmetic of a device that holds every code of a quantized network: int8 | tf32 | float32.

    int8, on a processor that has it, where weights are whole numbers from -127 to 127, and signals whole numbers of
    which no two differ by more than 255: INT up to 8 bits, POT up to 3 bits, FLOAT_n_E2 up to 7 bits. tf32, on a GPU,
    for up to 11 significant bits: `lower` in float32 under ``runtime.tf32(True)``.
    """
    weights = [fake_quantize.quantizer(layer) for _, layer in layers.weighted_layers(network)]
    formats = {step.format for step in [*weights, *network.quantizers.children()] if isinstance(step, Quantized)}
    if device.type == "cpu":
        return "int8" if all(int8.holds(format) for format in formats) and int8.available() else "float32"
    narrow = device.type == "cuda" and all(format.significant_bits <= 11 for format in formats)
    return "tf32" if narrow else "float32"


@dataclass(frozen=True)
class _Signal:
    """How the new graph represents a value of the network: ``clip(node * scale + offset, low, high)``.

    Attributes:
        scale: None if the node holds the value itself. Codes have one number and no offset; behind a BatchNorm there
            is one per channel, and so of offset, low and high.
        sum: whether the node is a sum of codes that nothing else reads.
        lowest, highest: the range of the codes.
        is_size: whether the value is no tensor but a size of one, or computed from sizes.
    """

    node: fx.Node
    scale: Tensor | None = None
    offset: Tensor | None = None
    low: float | Tensor = -torch.inf
    high: float | Tensor = torch.inf
    sum: bool = False
    lowest: float = -torch.inf
    highest: float = torch.inf
    is_size: bool = False

    @property
    def largest(self) -> float:
        """The largest magnitude of the codes."""
        return max(-self.lowest, self.highest)

    @property
    def is_scaled(self) -> bool:
        """Whether the value is the node times one number, so that operations like pools can work on the node."""
        clipped = any(isinstance(bound, Tensor) or abs(bound) < torch.inf for bound in (self.low, self.high))
        return self.scale is not None and self.scale.numel() == 1 and self.offset is None and not clipped

    def clipped(self, low: float, high: float) -> "_Signal":
        """The value clipped to ``low`` .. ``high``."""
        bounds = (torch.as_tensor(bound, dtype=torch.float64).clamp(low, high) for bound in (self.low, self.high))
        return replace(
            self, **dict(zip(("low", "high"), (one if one.dim() else one.item() for one in bounds), strict=True))
        )

    def normalized(self, factor: Tensor, shift: Tensor) -> "_Signal":
        """The value times a factor plus a shift, one of each per channel: another clipped affine function of the node.

        ``clip(x s + o, l, h) f + b = clip(x s f + (o f + b), l f + b, h f + b)``; a factor below 0 swaps the limits.
        """
        ends = [
            torch.where(factor == 0, 0.0, torch.as_tensor(bound) * factor) + shift for bound in (self.low, self.high)
        ]
        offset = shift if self.offset is None else self.offset * factor + shift
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        return replace(self, scale=self.scale * factor, offset=offset, low=low, high=high)


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
        if points.is_shape(node) or (inputs and all(signal.is_size for signal in inputs)):
            return _Signal(self._copy(node, lambda source: self.signals[source].node), is_size=True)
        inputs = [signal for signal in inputs if not signal.is_size]
        kind, scaled = points.kind(self.network, node), all(signal.is_scaled for signal in inputs)
        if node.op == "placeholder":
            return _Signal(self.graph.call_method("to", (self.graph.node_copy(node), self.dtype)))
        if node.op == "call_module" and isinstance(self.network.get_submodule(node.target), Quantized):
            return self._requantize(node, inputs[0])
        if kind == points.WEIGHTED and scaled:
            return self._multiply(node, inputs[0])
        if kind == points.SUM and scaled and len(inputs) == 2:
            return self._add(*inputs, node.kwargs.get("alpha", 1))
        if points.is_identity(self.network, node):
            return inputs[0]
        if kind == points.NORMALIZATION and (affine := self._affine(node)):
            if inputs[0].scale is not None:
                return inputs[0].normalized(*affine)
            part = Value(*affine, -torch.inf, torch.inf, self.dtype)
            return _Signal(self._call(node.target, part, inputs[0].node))
        bounds = points.bounds(self.network, node)
        if bounds and (inputs[0].sum or (inputs[0].scale is not None and not scaled)):
            return inputs[0].clipped(*bounds)
        if inputs and scaled and (kind in (points.KEEP, points.AVERAGE) or points.is_relu(self.network, node)):
            return self._keep(node, inputs[0])
        return _Signal(self._copy(node, self._value))

    def _requantize(self, node: fx.Node, signal: _Signal) -> _Signal:
        quantizer = self.network.get_submodule(node.target)
        step = quantizer.scale.double() * unit(quantizer.format)
        scale = torch.ones_like(step) if signal.scale is None else signal.scale
        part = Requantize(
            quantizer.format,
            scale / step,
            None if signal.offset is None else signal.offset / step,
            low=signal.low / step.item(),
            high=signal.high / step.item(),
            value_of_code=step.item(),
            overwrite=signal.sum,
            dtype=self.dtype,
        )
        codes = self._call(node.target, part, signal.node)
        if part.unit != quantizer.format.unit:  # codes are no whole numbers
            return _Signal(codes, step)
        return _Signal(codes, step, lowest=part.lowest, highest=part.highest)

    def _affine(self, node: fx.Node) -> tuple[Tensor, Tensor] | None:
        """(factor, shift) of a BatchNorm, float64, in a shape that broadcasts; None if each batch has its own."""
        norm, shape = self.network.get_submodule(node.target), node.meta["tensor_meta"].shape
        if norm.running_mean is None:
            return None
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight.detach().double()
        shift = -norm.running_mean.double() * factor
        shift = shift if norm.bias is None else shift + norm.bias.detach().double()
        return tuple(values.view(-1, *[1] * (len(shape) - 2)) for values in (factor, shift))

    def _multiply(self, node: fx.Node, signal: _Signal) -> _Signal:
        layer = self.network.get_submodule(node.target)
        codes, scale = weight_codes(layer)
        channels = (-1, *[1] * (codes.dim() - 2))  # so that one number per channel broadcasts against the sums
        part = parametrizations.bake(layer)
        part.weight, part.bias = nn.Parameter(codes.to(self.dtype), requires_grad=False), None
        if self.arithmetic == "int8" and int8.fits(part, signal.lowest, signal.highest):
            part = int8.Conv2d(part, lowest=min(round(signal.lowest), 0))
        scale = signal.scale * (scale if scale.numel() == 1 else scale.view(channels))
        offset = None
        if layer.bias is not None:
            offset = layer.bias.detach().double().view(channels)
            if self.dtype == torch.float32:
                offset = _exact_in_sums(offset / scale, codes, signal.largest) * scale
        return _Signal(self._call(node.target, part, signal.node), scale, offset, sum=True)

    def _add(self, first: _Signal, second: _Signal, alpha: float) -> _Signal:
        ratio = alpha * (second.scale / first.scale).item()
        scaled = second.node if ratio == 1 else self.graph.call_function(torch.mul, (second.node, ratio))
        total = self.graph.call_function(torch.add, (first.node, scaled))
        return _Signal(total, first.scale, sum=True)

    def _keep(self, node: fx.Node, signal: _Signal) -> _Signal:
        """An operation that may come before or after scaling: pools, flattening, ReLU. It works on the codes."""
        moved = self._copy(node, lambda source: self.signals[source].node)
        if points.kind(self.network, node) == points.AVERAGE:  # means of codes are not whole numbers
            return _Signal(moved, signal.scale)
        lowest = max(signal.lowest, 0.0) if points.is_relu(self.network, node) else signal.lowest
        return _Signal(moved, signal.scale, lowest=lowest, highest=signal.highest)

    def _value(self, source: fx.Node) -> fx.Node:
        """The node that holds the value of a signal."""
        signal = self.signals[source]
        if signal.scale is None:
            return signal.node
        part = Value(signal.scale, signal.offset, signal.low, signal.high, self.dtype)
        return self._call(f"values.{source.name}", part, signal.node)

    def _copy(self, node: fx.Node, source_of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The same operation in the new graph, with its tensors in the type of the arithmetic."""
        if node.op == "call_module":
            part = parametrizations.bake(self.network.get_submodule(node.target))
            self.parts[node.target] = part.to(self.dtype).requires_grad_(False)
        elif node.op == "get_attr":
            constant = operator.attrgetter(node.target)(self.network).detach()
            name = f"constants.{node.name}"  # a name of its own: a layer of that name may be called, too
            self.parts[name] = constant.to(self.dtype) if constant.is_floating_point() else constant
            return self.graph.get_attr(name)
        return self.graph.node_copy(node, source_of)

    def _call(self, name: str, part: nn.Module, source: fx.Node) -> fx.Node:
        """Call a module under this name in the new graph."""
        while name in self.parts:  # a layer that is called again has an input of another scale
            name += "_again"
        self.parts[name] = part
        return self.graph.call_module(name, (source,))


def _exact_in_sums(bias: Tensor, codes: Tensor, largest: float) -> Tensor:
    """Biases, in units of a layer's sums, rounded so finely that float32 adds them to the sums without rounding.

    No sum exceeds ``sum |codes| largest``; float32 holds multiples of a power of two exactly up to 2^24 of them. The
    order of the additions then does not matter. With codes that are not whole numbers nothing is gained or changed.
    """
    bound = codes.abs().flatten(1).sum(1).max().item() * largest + bias.abs().max().item()
    if not math.isfinite(bound) or bound == 0 or not bool((codes == codes.round()).all()):
        return bias
    grid = min(2.0 ** (math.ceil(math.log2(bound)) - 24), 1.0)
    return (bias / grid).round() * grid


def weight_codes(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The codes of a layer's weight, and what one code is worth: float64, one number or one per output channel.

    A weight that is not quantized is its own code, worth 1.
    """
    weight, quantizer = layer.weight.detach(), fake_quantize.quantizer(layer)
    if quantizer is None:
        return weight, torch.ones(1, dtype=torch.float64, device=weight.device)
    worth = unit(quantizer.format)
    return quantizer.format.round(weight / quantizer.scale) / worth, quantizer.scale.double().flatten() * worth
