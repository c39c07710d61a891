"""Build an ONNX graph node by node."""

import importlib
from types import ModuleType

import numpy
import torch
from torch import Tensor

OPSET, OPSET_OF_TWO_BITS = 21, 25  # the operators of QuantizeLinear and its like know 4 bits since 21, 2 bits since 25
Shape = tuple[int | None, ...]


def required(name: str) -> ModuleType:
    """A library of the extra ``onnx``; a ModuleNotFoundError says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} is not installed; install it by: pip install 'rqlib[onnx]'") from error


class Builder:
    """Collects the nodes and constants of an ONNX graph. Every value has a name; constants of equal values are one.

    Attributes:
        shapes: name of a value -> its shape; None stands for the number of images.
        shape: that of the result of the operation that is being translated, or a list of shapes.
        codes: name of a dequantized value -> names of the integers that it was made from, and of their zero point, if
            it is not 0.
    """

    def __init__(self):
        self.onnx = required("onnx")
        self.nodes, self.constants, self.opset = [], {}, OPSET
        self.shapes: dict[str, Shape] = {}
        self.shape: Shape | list[Shape] = ()
        self.codes: dict[str, tuple[str, str | None]] = {}

    def node(self, operation: str, *inputs: str, outputs: int = 1, **attributes) -> str | list[str]:
        """Add an operation; the name of its result, or a list of names if it has several."""
        names = [f"v{len(self.nodes)}" if outputs == 1 else f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: Tensor | numpy.ndarray | float | list, dtype: str = "float32") -> str:
        """The name of a constant of a type of numpy or ml_dtypes: float32, int64, int8, uint4, float8_e4m3fn, ..."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else numpy.asarray(values)
        array = array.astype(_dtype(dtype))
        key = (dtype, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.onnx.numpy_helper.from_array(array, f"c{len(self.constants)}")
        if dtype in ("int2", "uint2"):
            self.opset = OPSET_OF_TWO_BITS
        return self.constants[key].name

    def dequantize(self, codes: str, scale: Tensor | float, zero_point: str | None = None) -> str:
        """``(codes - zero_point) scale`` with one scale; without a name of a zero point it is 0."""
        inputs = (codes, self.constant(scale), *([zero_point] if zero_point else []))
        name = self.node("DequantizeLinear", *inputs)
        self.codes[name] = codes, zero_point
        return name

    def dequantize_channels(self, codes: str, scales: Tensor, dtype: str) -> str:
        """``codes scales`` with one scale for each index along the first axis.

        The zero points are written out, and each time anew: onnxruntime's optimizer needs one vector for every weight.
        """
        zeros = numpy.zeros(len(scales), _dtype(dtype))
        name = f"zero_points{len(self.nodes)}"
        self.constants[name] = self.onnx.numpy_helper.from_array(zeros, name)
        return self.node("DequantizeLinear", codes, self.constant(scales), name, axis=0)

    def scaled(self, x: str, factor: float) -> str:
        """x times a number: integers that x was made from are dequantized once more, with a scale of their own."""
        if factor == 1:
            return x
        if x in self.codes:
            codes, zero_point = self.codes[x]
            return self.dequantize(codes, factor, zero_point)
        return self.node("Mul", x, self.constant(factor))

    def clip(self, x: str, low: float, high: float, dtype: str = "float32") -> str:
        """x clipped to ``low`` .. ``high``; an infinite bound is left out."""
        bounds = ["" if abs(bound) == torch.inf else self.constant(bound, dtype) for bound in (low, high)]
        if (low, high) == (0, torch.inf) and dtype == "float32":
            return self.node("Relu", x)
        return self.node("Clip", x, *bounds)

    def clip_by_channel(self, x: str, low: Tensor, high: Tensor) -> str:
        """x clipped to bounds that broadcast against it."""
        return self.node("Min", self.node("Max", x, self.constant(low)), self.constant(high))

    def model(self, shape: Shape, output: str, classes: int, metadata: dict[str, str]):
        """The finished ONNX model of images ``pixels`` of this shape to ``logits``."""
        helper = self.onnx.helper
        float32 = self.onnx.TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [output], ["logits"]))
        pixels = helper.make_tensor_value_info("pixels", float32, ["images", *shape[1:]])
        logits = helper.make_tensor_value_info("logits", float32, ["images", classes])
        graph = helper.make_graph(self.nodes, "rqlib", [pixels], [logits], list(self.constants.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="rqlib")
        helper.set_model_props(model, metadata)
        self.onnx.checker.check_model(model)
        return model


def _dtype(name: str) -> numpy.dtype:
    if name in ("float32", "int64", "int32", "int16", "uint16", "int8", "uint8"):
        return numpy.dtype(name)
    return numpy.dtype(getattr(required("ml_dtypes"), name))
