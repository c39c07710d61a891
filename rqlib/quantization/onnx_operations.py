"""Operations of a network's graph as ONNX operators: activations, pools, sums, reshapes.

A translator takes a `Builder`, the names of tensors, and otherwise the arguments of the function in torch; it returns
the name of the result. Where the shape of the result says all, as for ``view``, other arguments are not read.
"""

import math
import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.defenses.activations import AveragedRange, DDTReLU, DTReLU, knots_of
from rqlib.quantization.onnx_builder import Builder

Translator = Callable[..., "str | list[str]"]


def translator(function: object) -> Translator | None:
    """The translator of a function, or of a method by its name; None if there is none."""
    return _FUNCTIONS.get(function) or (_FUNCTIONS.get("stochastic_depth") if _is_stochastic_depth(function) else None)


def of_module(module: nn.Module) -> tuple[Translator, dict] | None:
    """The translator of a module without weights and its keyword arguments; None if there is none."""
    for kind, (translate, names) in _MODULES.items():
        if isinstance(module, kind):
            return translate, {name: getattr(module, name) for name in names}
    return None


def same(b: Builder, x: str, *_, **__) -> str:
    """The value itself: what only changes memory, or does nothing in eval mode."""
    return x


def reshaped(b: Builder, x: str, *_, **__) -> str:
    """The values in the shape of the result."""
    if list(b.shape).count(None) > 1:
        raise ValueError(f"a shape {b.shape} in which several sizes depend on the number of images")
    return b.node("Reshape", x, b.constant([-1 if size is None else size for size in b.shape], "int64"))


def _plain(operation: str, **attributes) -> Translator:
    """A translator into one operator, whose arguments in torch do not matter."""
    return lambda b, x, *_, **__: b.node(operation, x, **attributes)


def _number(b: Builder, x: str | float | Tensor) -> str:
    return x if isinstance(x, str) else b.constant(x)


def _add(b: Builder, x: str, other: str, *, alpha: float = 1) -> str:
    other = b.scaled(other, alpha) if isinstance(other, str) else _number(b, alpha * other)
    return b.node("Add", _number(b, x), other)


def _subtract(b: Builder, x: str, other: str, *, alpha: float = 1) -> str:
    return _add(b, x, other, alpha=-alpha)


def _multiply(b: Builder, x: str, other: str) -> str:
    if isinstance(other, int | float):
        return b.scaled(x, other)
    return b.node("Mul", _number(b, x), _number(b, other))


def _divide(b: Builder, x: str, other: str) -> str:
    return b.node("Div", _number(b, x), _number(b, other))


def _hardtanh(b: Builder, x: str, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> str:
    return b.clip(x, min_val, max_val)


def _relu6(b: Builder, x: str, inplace: bool = False) -> str:
    return b.clip(x, 0.0, 6.0)


def _leaky_relu(b: Builder, x: str, negative_slope: float = 0.01, inplace: bool = False) -> str:
    return b.node("LeakyRelu", x, alpha=negative_slope)


def _elu(b: Builder, x: str, alpha: float = 1.0, inplace: bool = False) -> str:
    return b.node("Elu", x, alpha=alpha)


def _hardsigmoid(b: Builder, x: str, inplace: bool = False) -> str:
    """Like the next function in the order of torch, and so with the same rounding."""
    return b.node("Div", _relu6(b, b.node("Add", x, b.constant(3.0))), b.constant(6.0))


def _hardswish(b: Builder, x: str, inplace: bool = False) -> str:
    product = b.node("Mul", x, _relu6(b, b.node("Add", x, b.constant(3.0))))
    return b.node("Div", product, b.constant(6.0))


def _silu(b: Builder, x: str, inplace: bool = False) -> str:
    return b.node("Mul", x, b.node("Sigmoid", x))


def _gelu(b: Builder, x: str, approximate: str = "none") -> str:
    return b.node("Gelu", x, approximate=approximate)


def _softplus(b: Builder, x: str, beta: float = 1.0, threshold: float = 20.0) -> str:
    return b.scaled(b.node("Softplus", b.scaled(x, beta)), 1 / beta)


def _few_levels(b: Builder, x: str, upper: Tensor, steps: int, lower: Tensor | float = 0.0) -> str:
    """DTReLU and the averaged range: clipped to [lower, upper] and rounded to ``steps + 1`` levels."""
    span = b.constant(upper - lower)
    place = b.clip(b.node("Div", b.node("Sub", b.node("Relu", x), b.constant(lower)), span), 0.0, 1.0)
    level = b.node("Div", b.node("Round", b.scaled(place, steps)), b.constant(float(steps)))
    return b.node("Add", b.node("Mul", level, span), b.constant(lower))


def _stairs(b: Builder, x: str, start: Tensor, widths: Tensor, step: Tensor) -> str:
    """DDTReLU: the number of thresholds below a value, times the step."""
    last, float32 = b.constant([-1], "int64"), b.onnx.TensorProto.FLOAT
    thresholds = b.constant(knots_of(start, widths)[:-1] + widths / 2)
    below = b.node("Greater", b.node("Unsqueeze", x, last), thresholds)
    count = b.node("ReduceSum", b.node("Cast", below, to=float32), last, keepdims=0)
    return b.node("Mul", count, b.constant(step))


def _softmax(b: Builder, x: str, dim: int | None = None, **_) -> str:
    if dim is None:
        raise ValueError("a softmax without dim, whose axis torch guesses")
    return b.node("Softmax", x, axis=dim)


def _concatenate(b: Builder, tensors: Sequence[str], dim: int = 0, *, axis: int | None = None) -> str:
    return b.node("Concat", *tensors, axis=dim if axis is None else axis)


def _split(b: Builder, x: str, sizes: object, dim: int = 0) -> list[str]:
    names = b.node("Split", x, b.constant([shape[dim] for shape in b.shape], "int64"), outputs=len(b.shape), axis=dim)
    return names if isinstance(names, list) else [names]


def _mean(b: Builder, x: str, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> str:
    axes = range(len(b.shapes[x])) if dim is None else [dim] if isinstance(dim, int) else dim
    return b.node("ReduceMean", x, b.constant(list(axes), "int64"), keepdims=int(keepdim))


def _transpose(b: Builder, x: str, dim0: int, dim1: int) -> str:
    order = list(range(len(b.shapes[x])))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return b.node("Transpose", x, perm=order)


def _permute(b: Builder, x: str, *dims) -> str:
    dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return b.node("Transpose", x, perm=[dim % len(b.shapes[x]) for dim in dims])


def _item(b: Builder, x: str | list[str], index: object) -> str:
    """One tensor of several, or part of a tensor: whole numbers and slices along its first axes."""
    if isinstance(x, list):
        return x[index]
    axis = 0
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            x = b.node("Gather", x, b.constant(part, "int64"), axis=axis)
            continue
        if not isinstance(part, slice):
            raise ValueError("an index that is neither a number nor a slice")
        if part != slice(None):
            bounds = (part.start or 0, 2**62 if part.stop is None else part.stop)
            steps = [b.constant([value], "int64") for value in (*bounds, axis, part.step or 1)]
            x = b.node("Slice", x, *steps)
        axis += 1
    return x


def _max_pool(
    b: Builder, x: str, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> str:
    return b.node("MaxPool", x, **_windows(b, x, kernel_size, stride, padding, dilation, ceil_mode))


def _average_pool(
    b: Builder, x: str, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
) -> str:  # fmt: skip
    windows = _windows(b, x, kernel_size, stride, padding, 1, ceil_mode)
    axes = len(windows["kernel_shape"])
    if divisor_override or (count_include_pad and windows["pads"][:axes] != windows["pads"][axes:]):
        raise ValueError("an average pool with a divisor of its own, or with windows that end outside")
    return b.node("AveragePool", x, **windows, count_include_pad=int(count_include_pad and any(windows["pads"])))


def _windows(b: Builder, x: str, kernel_size, stride, padding, dilation, ceil_mode: bool) -> dict:
    """Attributes of a pool. With ``ceil_mode`` the padding at the end follows from the size of the result."""
    inputs, outputs = b.shapes[x][2:], b.shape[2:]
    kernel, stride, padding, dilation = (
        _each(value, len(inputs)) for value in (kernel_size, stride or kernel_size, padding, dilation)
    )
    reach = [
        (count - 1) * step + (size - 1) * gap + 1 - before - given
        for count, step, size, gap, before, given in zip(
            outputs, stride, kernel, dilation, padding, inputs, strict=True
        )
    ]
    ends = [max(end, 0) for end in reach] if ceil_mode else padding
    dilations = dilation if max(dilation) > 1 else None
    windows = {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *ends]}
    return windows if dilations is None else windows | {"dilations": dilations}


def _each(value, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def _adaptive_average_pool(b: Builder, x: str, output_size: object) -> str:
    inputs, outputs = b.shapes[x][2:], b.shape[2:]
    if inputs == outputs:
        return x
    if set(outputs) == {1}:
        return b.node("GlobalAveragePool", x)
    for axis, (given, wanted) in enumerate(zip(inputs, outputs, strict=True), start=2):
        x = _averages_along(b, x, axis, given, wanted, len(inputs) + 2)
    return x


def _averages_along(b: Builder, x: str, axis: int, given: int, wanted: int, rank: int) -> str:
    """Means of ``wanted`` windows along one axis as torch places them, by a product with a matrix (given, wanted)."""
    matrix = torch.zeros(given, wanted)
    for index in range(wanted):
        start, end = index * given // wanted, math.ceil((index + 1) * given / wanted)
        matrix[start:end, index] = 1 / (end - start)
    order = [*(other for other in range(rank) if other != axis), axis]
    back = [order.index(other) for other in range(rank)]
    last = x if axis == rank - 1 else b.node("Transpose", x, perm=order)
    means = b.node("MatMul", last, b.constant(matrix))
    return means if axis == rank - 1 else b.node("Transpose", means, perm=back)


def _adaptive_max_pool(b: Builder, x: str, output_size: object, return_indices: bool = False) -> str:
    inputs, outputs = b.shapes[x][2:], b.shape[2:]
    if any(given % wanted for given, wanted in zip(inputs, outputs, strict=True)):
        raise ValueError(f"an adaptive max-pool from {inputs} to {outputs}, which are not multiples")
    kernel = [given // wanted for given, wanted in zip(inputs, outputs, strict=True)]
    return b.node("MaxPool", x, kernel_shape=kernel, strides=kernel)


def _pad(b: Builder, x: str, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> str:
    """Torch counts from the last axis to the first, ONNX all beginnings before all ends."""
    rank = len(b.shapes[x])
    pairs = [(0, 0)] * (rank - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    pads = b.constant([before for before, _ in pairs] + [after for _, after in pairs], "int64")
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return b.node("Pad", x, pads, b.constant(value or 0.0), mode=modes[mode])


def _zero_pad(b: Builder, x: str, padding: Sequence[int]) -> str:
    return _pad(b, x, padding)


def _reflection_pad(b: Builder, x: str, padding: Sequence[int]) -> str:
    return _pad(b, x, padding, "reflect")


def _channel_shuffle(b: Builder, x: str, groups: int) -> str:
    _, channels, *sizes = b.shapes[x]
    parts = b.node("Reshape", x, b.constant([-1, groups, channels // groups, *sizes], "int64"))
    order = [0, 2, 1, *range(3, 3 + len(sizes))]
    return b.node("Reshape", b.node("Transpose", parts, perm=order), b.constant([-1, channels, *sizes], "int64"))


def _pixel_shuffle(b: Builder, x: str, upscale_factor: int) -> str:
    return b.node("DepthToSpace", x, blocksize=upscale_factor, mode="CRD")


def _is_stochastic_depth(function: object) -> bool:
    """Whether it is torchvision's, which does nothing in eval mode; torchvision need not be imported to know."""
    return getattr(function, "__name__", "") == "stochastic_depth"


_TABLE: tuple[tuple[Translator, tuple], ...] = (
    (_plain("Relu"), (torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")),
    (_plain("Sigmoid"), (torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_")),
    (_plain("Tanh"), (torch.tanh, F.tanh, "tanh", "tanh_")),
    (_hardswish, (F.hardswish,)),
    (_hardsigmoid, (F.hardsigmoid,)),
    (_plain("Mish"), (F.mish,)),
    (_plain("Abs"), (torch.abs, "abs", operator.abs)),
    (_plain("Neg"), (torch.neg, "neg", operator.neg)),
    (_hardtanh, (F.hardtanh, F.hardtanh_)),
    (_relu6, (F.relu6,)),
    (_leaky_relu, (F.leaky_relu, F.leaky_relu_)),
    (_elu, (F.elu, F.elu_)),
    (_silu, (F.silu,)),
    (_gelu, (F.gelu,)),
    (_softplus, (F.softplus,)),
    (_softmax, (torch.softmax, F.softmax, "softmax")),
    (_add, (torch.add, operator.add, operator.iadd, "add", "add_")),
    (_subtract, (torch.sub, operator.sub, operator.isub, "sub", "sub_")),
    (_multiply, (torch.mul, operator.mul, operator.imul, "mul", "mul_")),
    (_divide, (torch.div, torch.true_divide, operator.truediv, operator.itruediv, "div", "div_")),
    (_concatenate, (torch.cat, torch.concat)),
    (_split, (torch.chunk, torch.split, "chunk", "split")),
    (_mean, (torch.mean, "mean")),
    (_transpose, (torch.transpose, "transpose")),
    (_permute, (torch.permute, "permute")),
    (_item, (operator.getitem,)),
    (_max_pool, (F.max_pool1d, F.max_pool2d, F.max_pool3d)),
    (_average_pool, (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)),
    (_adaptive_average_pool, (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)),
    (_adaptive_max_pool, (F.adaptive_max_pool1d, F.adaptive_max_pool2d)),
    (_pad, (F.pad,)),
    (_channel_shuffle, (F.channel_shuffle,)),
    (_pixel_shuffle, (F.pixel_shuffle,)),
    (reshaped, (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze)),
    (reshaped, ("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten")),
    (same, (F.dropout, F.dropout2d, "contiguous", "to", "float", "double", "detach", "clone", "stochastic_depth")),
)
_FUNCTIONS: dict[object, Translator] = {target: translate for translate, targets in _TABLE for target in targets}

_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
_MODULES: dict[type[nn.Module] | tuple[type[nn.Module], ...], tuple[Translator, tuple[str, ...]]] = {
    (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d): (same, ()),
    nn.ReLU: (_plain("Relu"), ()),
    DTReLU: (_few_levels, ("upper", "steps", "lower")),
    AveragedRange: (_few_levels, ("upper", "steps")),
    DDTReLU: (_stairs, ("start", "widths", "step")),
    nn.Hardtanh: (_hardtanh, ("min_val", "max_val")),  # ReLU6 is one
    nn.LeakyReLU: (_leaky_relu, ("negative_slope",)),
    nn.ELU: (_elu, ("alpha",)),
    nn.Hardswish: (_hardswish, ()),
    nn.Hardsigmoid: (_hardsigmoid, ()),
    nn.SiLU: (_silu, ()),
    nn.GELU: (_gelu, ("approximate",)),
    nn.Mish: (_plain("Mish"), ()),
    nn.Sigmoid: (_plain("Sigmoid"), ()),
    nn.Tanh: (_plain("Tanh"), ()),
    nn.Softplus: (_softplus, ("beta",)),
    nn.Softmax: (_softmax, ("dim",)),
    (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d): (_max_pool, (*_POOL, "dilation")),
    nn.AvgPool1d: (_average_pool, (*_POOL, "count_include_pad")),
    (nn.AvgPool2d, nn.AvgPool3d): (_average_pool, (*_POOL, "count_include_pad", "divisor_override")),
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d): (_adaptive_average_pool, ("output_size",)),
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d): (_adaptive_max_pool, ("output_size",)),
    (nn.Flatten, nn.Unflatten): (reshaped, ()),
    nn.ZeroPad2d: (_zero_pad, ("padding",)),
    nn.ReflectionPad2d: (_reflection_pad, ("padding",)),
    nn.ChannelShuffle: (_channel_shuffle, ("groups",)),
    nn.PixelShuffle: (_pixel_shuffle, ("upscale_factor",)),
}  # fmt: skip
