"""Write a quantized network as an ONNX file of integers: QuantizeLinear, DequantizeLinear and ordinary operators."""

import math
import operator
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from rqlib.core import derived, entry, files, layers, parametrizations, provenance, runtime
from rqlib.quantization import fake_quantize, integer, onnx_operations
from rqlib.quantization.fake_quantize import Quantized
from rqlib.quantization.formats import Format
from rqlib.quantization.onnx_builder import Builder
from rqlib.quantization.requantize import Requantize, Value

PACKED = (("int2", 1), ("int4", 7), ("int8", 127), ("int16", 32767))
"""Type of integer weights in the file -> the largest magnitude for which it is used."""
NUMBER_OF_IMAGES = object()
"""Stands for a number that depends on how many images there are: no constant of the file can hold it."""
FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def export(
    network: nn.Module,
    path: str | Path,
    *,
    shape: tuple[int, int, int] | None = None,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Write a network as an ONNX file that computes what its integer form (`quantization.lower`) computes.

    The file takes ``pixels`` (any number of images, C, H, W) in [0, 1] and returns ``logits``. A convolution or linear
    layer multiplies whole numbers, so its sums are exact; the scales are applied where the sum is quantized again.
    So between two such points a value counts steps, as codes do.

    Weights take few bits in the file: 2, 4, 8 or 16 for INT; 8 if all of them are values of FLOAT8E4M3FN or
    FLOAT8E5M2; otherwise they are floating point numbers on the grid of the format. Signals of up to 4, 8 and 16 bits
    are integers (UINT4, INT8, UINT8, INT16, UINT16), clipped to the codes of the format; signals in FLOAT and POT are
    rounded by ordinary operators. A network whose weights alone are quantized, or that is not quantized, is written
    with signals in float32, with BatchNorm folded where it can be.

    Args:
        network: of `quantization.ptq`, or any network that torch.fx can trace.
        path: of the file; it replaces an older one.
        shape: (C, H, W) of an image; a network of `ptq` with quantized signals knows it.
        facts: what else the file should say of itself, such as its accuracy. It always says the formats, the
            granularity and the commit.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        ValueError: an operation has no ONNX form (it is named); torch.fx cannot trace the network; no shape is known.
    """
    has_codes = any(isinstance(module, Quantized) for module in getattr(network, "quantizers", nn.Module()).children())
    shape = shape or _known_shape(network)
    if has_codes:
        graph = integer.lower(parametrizations.copied(network).cpu(), arithmetic="float32", batch_size=8)
    else:
        plain = parametrizations.copied(entry.classifier(network)).float().cpu().eval()
        images = torch.rand(4, *shape, generator=runtime.rng(0))
        has_formats = bool(_formats(plain))
        graph = derived.traced(plain, images) if has_formats else derived.folded(parametrizations.bake(plain), images)
    model = _Translation(graph, (2, *shape)).run(_metadata(network) | {k: str(v) for k, v in (facts or {}).items()})
    path = Path(path)
    with files.atomic(path) as unfinished:
        unfinished.write_bytes(model.SerializeToString())
    return path


def _known_shape(network: nn.Module) -> tuple[int, ...]:
    """(C, H, W) of the images that a network was calibrated on."""
    first = next(iter(network.graph.nodes), None) if isinstance(network, fx.GraphModule) else None
    found = first.meta.get("tensor_meta") if first is not None else None
    if found is None:
        raise ValueError("expected the shape of an image, which this network does not know; say shape=(C, H, W)")
    return tuple(found.shape[1:])


def _formats(network: nn.Module) -> list[Quantized]:
    found = [fake_quantize.quantizer(layer) for _, layer in layers.weighted_layers(network)]
    return [step for step in found if step is not None]


def _metadata(network: nn.Module) -> dict[str, str]:
    """What every file says of itself."""
    weights = _formats(network)
    points = [point for point in getattr(network, "quantizers", nn.Module()).children() if isinstance(point, Quantized)]
    commit = provenance.commit(Path(__file__).parents[2])["commit"]
    return {
        "weights": ", ".join(sorted({step.format.name for step in weights})) or "float32",
        "signals": ", ".join(sorted({point.format.name for point in points})) or "float32",
        "granularity": "channel" if any(step.scale.numel() > 1 for step in weights) else "tensor",
        "commit": commit or "unknown",
    }


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor, and every other value."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.seen: dict[fx.Node, object] = {}

    def run_node(self, node: fx.Node) -> object:
        result = super().run_node(node)
        self.seen[node] = _shape_of(result)
        return result


def _shape_of(value: object) -> object:
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, tuple | list) and value and all(isinstance(part, Tensor) for part in value):
        return [part.shape for part in value]
    return value


def _shapes(graph: fx.GraphModule, shape: tuple[int, ...]) -> dict[fx.Node, object]:
    """Node -> shape of its tensor, with None for sizes that depend on the number of images; any other value itself."""
    runs = []
    for images in (2, 3):
        run = _Shapes(graph)
        with torch.no_grad():
            run.run(torch.zeros(images, *shape[1:]))
        runs.append(run.seen)
    return {node: _in_both(runs[0][node], runs[1][node]) for node in graph.graph.nodes}


def _in_both(one: object, other: object) -> object:
    if isinstance(one, torch.Size):
        return tuple(size if size == again else None for size, again in zip(one, other, strict=True))
    if isinstance(one, list) and one and isinstance(one[0], torch.Size):
        return [_in_both(part, again) for part, again in zip(one, other, strict=True)]
    if isinstance(one, int | float) and one != other:
        return NUMBER_OF_IMAGES
    return one


class _Translation:
    """One pass over a graph: ``names`` maps its nodes to names of values, or to values that are not tensors."""

    def __init__(self, graph: fx.GraphModule, shape: tuple[int, ...]):
        self.graph, self.shape, self.builder = graph, shape, Builder()
        self.shapes = _shapes(graph, shape)
        self.names: dict[fx.Node, object] = {}
        self.taken: dict[fx.Node, float] = {}  # layers that bear the offset of what follows -> the factor they leave

    def run(self, metadata: dict[str, str]):
        *nodes, last = self.graph.graph.nodes
        for node in nodes:
            self.names[node] = self._translate(node)
            if isinstance(self.names[node], str):
                self.builder.shapes[self.names[node]] = self.builder.shape
        (result,) = last.all_input_nodes
        return self.builder.model(self.shape, self.names[result], self.shapes[result][-1], metadata)

    def _translate(self, node: fx.Node) -> object:
        shape = self.builder.shape = self.shapes[node]
        if node.op == "placeholder":
            return "pixels"
        if node.op == "get_attr":
            return self.builder.constant(operator.attrgetter(node.target)(self.graph))
        is_tensor = isinstance(shape, tuple) or (isinstance(shape, list) and isinstance(shape[0], tuple))
        if not is_tensor or node.target in (getattr, "size"):
            return shape
        if node.op == "call_module":
            return self._module(node, self.graph.get_submodule(node.target))
        translate = onnx_operations.translator(node.target)
        if translate is None:
            raise _missing(node, getattr(node.target, "__name__", node.target))
        return self._call(node, translate, *fx.map_arg((node.args, node.kwargs), self.names.__getitem__))

    def _call(self, node: fx.Node, translate: onnx_operations.Translator, args: tuple, kwargs: dict) -> object:
        try:
            return translate(self.builder, *args, **kwargs)
        except (ValueError, TypeError) as error:
            raise _missing(node, error) from error

    def _module(self, node: fx.Node, module: nn.Module) -> str:
        (source,) = node.all_input_nodes
        x = self.names[source]
        special = {
            Requantize: self._requantize,
            Value: self._value,
            layers.WEIGHTED: self._weighted,
            layers.NORMALIZATIONS: self._batchnorm,
            nn.PReLU: self._prelu,
        }
        for kind, translate in special.items():
            if isinstance(module, kind) and (kind is not layers.NORMALIZATIONS or layers.is_batchnorm(module)):
                return translate(node, module, x)
        found = onnx_operations.of_module(module)
        if found is None:
            raise _missing(node, type(module).__name__)
        return self._call(node, found[0], (x,), found[1])

    def _weighted(self, node: fx.Node, layer: nn.Module, x: str) -> str:
        codes, worth = integer.weight_codes(layer)
        bias = None if layer.bias is None else layer.bias.detach()
        followers = _followers(self.graph, node) if bias is None else []
        if followers:  # the integer form, where scale and bias are in what follows
            worth, bias = self._taken_over(node, followers)
        weight = self._weight(codes.detach(), worth)
        inputs = [x, weight, *([] if bias is None else [self.builder.constant(bias)])]
        if isinstance(layer, nn.Linear):
            return self._linear(inputs)
        return self.builder.node("Conv", *inputs, **_geometry(node, layer))

    def _linear(self, inputs: list[str]) -> str:
        x, weight, *bias = inputs
        if len(self.builder.shape) == 2:
            return self.builder.node("Gemm", x, weight, *bias, transB=1)
        product = self.builder.node("MatMul", x, self.builder.node("Transpose", weight, perm=[1, 0]))
        return self.builder.node("Add", product, *bias) if bias else product

    def _weight(self, codes: Tensor, worth: Tensor) -> str:
        """A weight ``codes worth`` in as few bits as hold it."""
        largest = codes.abs().max()
        axis = 0 if worth.numel() > 1 else None
        scale = worth if axis == 0 else worth.squeeze()
        kind = None
        if bool((codes == codes.round()).all()):
            kind = next((name for name, most in PACKED if largest <= most), None)
        if kind is None:
            kind, codes, scale = _in_float8(codes, scale)
        if kind is None:
            values = codes.double() * worth.view(-1, *[1] * (codes.dim() - 1))
            return self.builder.constant(values)
        stored = self.builder.constant(codes.float(), kind)
        if axis is None:
            return self.builder.dequantize(stored, scale)
        return self.builder.dequantize_channels(stored, scale, kind)

    def _taken_over(self, node: fx.Node, followers: list[Requantize | Value]) -> tuple[Tensor, Tensor | None]:
        """(what one code of a weight is worth, bias) such that a layer's result needs one more factor at most.

        That is so if one number scales the sums, or if one positive number per channel does so for a single reader.
        """
        part, *others = followers
        if all(_one_factor(part) for part in followers):
            offsets = [part.offset for part in followers if part.offset is not None]
            self.taken[node] = 1.0
            return torch.ones(1), offsets[0].flatten() if offsets else None
        factors = _factors(part).double().flatten()
        if others or factors.min() <= 0 or (isinstance(part, Requantize) and part.low is not None):
            return torch.ones(1), None
        largest = self.taken[node] = factors.max().item()
        return factors / largest, None if part.offset is None else part.offset.double().flatten() / largest

    def _scaled(self, node: fx.Node, part: Requantize | Value, x: str) -> tuple[str, float]:
        """(name of a value, the factor that it still lacks) of ``x multiplier + offset``."""
        b, (source,) = self.builder, node.all_input_nodes
        if not _one_factor(part) and source in self.taken:
            return x, self.taken[source]
        if _one_factor(part):
            if part.offset is not None and source not in self.taken:
                x = b.node("Add", x, b.constant(part.offset))
            return x, 1 / part.step.double().item() if isinstance(part, Requantize) else part.scale.item()
        x = b.node("Mul", x, b.constant(_factors(part)))
        return (x if part.offset is None else b.node("Add", x, b.constant(part.offset))), 1.0

    def _requantize(self, node: fx.Node, part: Requantize, x: str) -> str:
        b, format = self.builder, part.format
        x, factor = self._scaled(node, part, x)
        lowest, largest = format.min / part.unit, format.max / part.unit
        if part.low is not None:
            x = b.clip_by_channel(x, part.low / factor, part.high / factor)
        elif part.lowest > lowest or part.highest < largest:
            low = part.lowest / factor if part.lowest > lowest else -math.inf
            x = b.clip(x, low, part.highest / factor if part.highest < largest else math.inf)
        if format.legacy:
            raise _missing(node, f"signals in {format.name}")
        if format.exponent_bits == 1 and format.bits <= 16:
            return self._integers(x, 1 / factor, format, lowest, largest)
        x = b.clip(b.scaled(x, factor), lowest, largest)
        if format.exponent_bits == 1:
            return b.node("Round", x)
        return self._snap(x, format.smallest_normal / part.unit, format.mantissa_bits)

    def _integers(self, x: str, step: float, format: Format, lowest: float, largest: float) -> str:
        """The nearest codes of an evenly spaced format, ties to even, as integers that are read back as numbers."""
        b, most = self.builder, largest - lowest
        if format.bits > 8:
            kind = "int16" if format.signed else "uint16"
            x = b.clip(x, lowest * step, largest * step)
        else:
            is_nibble = format.bits == 4 and not format.zero_point  # onnxruntime's optimizer fails on 4 bits with one
            kind = "int8" if format.signed else "uint4" if is_nibble else "uint8"
        zero_point = b.constant(format.zero_point, kind)
        codes = b.node("QuantizeLinear", x, b.constant(step), zero_point)
        if kind == "int8" or (kind == "uint8" and most < 255):
            codes = b.clip(codes, lowest + format.zero_point, largest + format.zero_point, kind)
        return b.dequantize(codes, 1.0, zero_point if format.zero_point else None)

    def _snap(self, x: str, smallest: float, mantissa_bits: int) -> str:
        """Round to a floating point grid: by Veltkamp's splitting above the smallest normal value, evenly below it."""
        b = self.builder
        split = b.node("Mul", x, b.constant(2.0 ** (23 - mantissa_bits) + 1))
        normal = b.node("Sub", split, b.node("Sub", split, x))
        shift = b.constant(1.5 * 2.0 ** (23 - mantissa_bits) * smallest)
        subnormal = b.node("Sub", b.node("Add", x, shift), shift)
        return b.node("Where", b.node("Less", b.node("Abs", x), b.constant(smallest)), subnormal, normal)

    def _value(self, node: fx.Node, part: Value, x: str) -> str:
        b = self.builder
        value = b.scaled(*self._scaled(node, part, x))
        if part.low.numel() > 1 or part.high.numel() > 1:
            return b.clip_by_channel(value, part.low, part.high)
        low, high = part.low.item(), part.high.item()
        return b.clip(value, low, high) if low > -math.inf or high < math.inf else value

    def _batchnorm(self, node: fx.Node, norm: nn.Module, x: str) -> str:
        if norm.running_mean is None:
            raise _missing(node, "a BatchNorm without running statistics")
        ones = torch.ones_like(norm.running_var)
        weight, bias = (ones, 0 * ones) if norm.weight is None else (norm.weight, norm.bias)
        tensors = [self.builder.constant(t) for t in (weight, bias, norm.running_mean, norm.running_var)]
        return self.builder.node("BatchNormalization", x, *tensors, epsilon=norm.eps)

    def _prelu(self, node: fx.Node, module: nn.PReLU, x: str) -> str:
        slopes = module.weight.detach().view(-1, *[1] * (len(self.builder.shape) - 2))
        return self.builder.node("PRelu", x, self.builder.constant(slopes))


def _missing(node: fx.Node, what: object) -> ValueError:
    return ValueError(f"operation {node.name} has no ONNX form here: {what}; the network itself is not changed")


def _followers(graph: fx.GraphModule, node: fx.Node) -> list[Requantize | Value]:
    """The modules by which the integer form turns the sums of a layer into codes or values."""
    parts = [graph.get_submodule(user.target) for user in node.users if user.op == "call_module"]
    return [part for part in parts if isinstance(part, Requantize | Value)]


def _one_factor(part: Requantize | Value) -> bool:
    return part.first if isinstance(part, Value) else part.step is not None


def _factors(part: Requantize | Value) -> Tensor:
    """One factor per channel."""
    return part.scale if isinstance(part, Value) else part.multiplier


def _in_float8(codes: Tensor, scale: Tensor) -> tuple[str | None, Tensor, Tensor]:
    """(type, values, scale) of a weight whose values are all of an 8-bit floating point type; else the type is None."""
    power = 2.0 ** torch.floor(torch.log2(codes.abs().max().clamp(min=1e-30).double()))
    for name, kind in FLOAT8.items():
        for top in (torch.finfo(kind).max, torch.finfo(kind).max / 2):
            factor = 2.0 ** math.floor(math.log2(top)) / power
            values = (codes.double() * factor).float()
            if torch.equal(values.to(kind).float(), values):
                return name, values, scale / factor
    return None, codes, scale


def _geometry(node: fx.Node, layer: nn.Module) -> dict:
    """Attributes of a convolution."""
    if layer.padding_mode != "zeros":
        raise _missing(node, f"a convolution with padding_mode {layer.padding_mode!r}")
    if isinstance(layer.padding, str):
        total = [gap * (size - 1) for gap, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        before = [size // 2 if layer.padding == "same" else 0 for size in total]
        after = [size - half if layer.padding == "same" else 0 for size, half in zip(total, before, strict=True)]
    else:
        before = after = layer.padding
    return {
        "kernel_shape": layer.kernel_size,
        "strides": layer.stride,
        "dilations": layer.dilation,
        "pads": [*before, *after],
        "group": layer.groups,
    }
