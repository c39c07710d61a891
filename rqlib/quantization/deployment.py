"""Run an exported network in onnxruntime, beside the network that it was made from."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import runtime
from rqlib.measures import evaluate
from rqlib.quantization import integer, onnx_export
from rqlib.quantization.fake_quantize import Quantized
from rqlib.quantization.onnx_builder import required
from rqlib.quantization.requantize import Value

SETTINGS = {
    "optimization off": (False, False),
    "optimization on": (True, False),
    "optimization on, x64quantprecision": (True, True),
}
"""Title -> (whether onnxruntime optimizes the graph, whether it avoids 8-bit sums that clip at 16 bits)."""
BATCH = 100
COLUMNS = ["setting", "accuracy", "deployed_accuracy", "differing", "largest_difference"]


def deploy(
    network: nn.Module,
    path: str | Path,
    images: Tensor,
    labels: Tensor,
    *,
    facts: Mapping[str, object] | None = None,
) -> pandas.DataFrame:
    """Write a network as an ONNX file (`quantization.export`) and run it in onnxruntime: the table of `deployed`.

    The file says how accurate the network is on these images. Without images there is no file and a table without
    rows. The same holds for a network that has no ONNX form; then a warning says why.
    """
    if len(images) == 0:
        return pandas.DataFrame(columns=COLUMNS)
    try:
        expected, step = _here(network, images, labels)
        said = {**(facts or {}), "accuracy": _accuracy(expected, labels), "accuracy_images": len(images)}
        onnx_export.export(network, path, shape=tuple(images.shape[1:]), facts=said)
    except ValueError as error:
        warnings.warn(f"no ONNX file: {error}", stacklevel=2)
        return pandas.DataFrame(columns=COLUMNS)
    return _compared(path, expected, step, images, labels)


def deployed(path: str | Path, network: nn.Module, images: Tensor, labels: Tensor) -> pandas.DataFrame:
    """Compare a file of `quantization.export` in onnxruntime with the network, here: one row per setting.

    With optimization off onnxruntime computes what the file says. With optimization on it rounds biases to whole steps
    of a layer's sum, which are coarse for formats of few bits, and multiplies 8-bit integers; a processor without the
    VNNI instructions then clips sums of two products to 16 bits, unless ``session.x64quantprecision`` is 1. So the rows
    show what this machine does with the file.

    Args:
        network: what was exported. With quantized signals its integer form (`quantization.lower`) is scored.
        images, labels: uint8 (N, C, H, W) and int64 (N,).

    Returns:
        A table with the columns setting; accuracy (here) and deployed_accuracy; differing, the fraction of the images
        that are classified otherwise; largest_difference, of the logits, in steps of their format if they have one.
        Where onnxruntime does not run the file with a setting, a warning says why and the figures are NaN.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    return _compared(path, *_here(network, images, labels), images, labels)


def _here(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """(logits of the integer form, or of a network without one; what one step of them is worth)."""
    required("onnxruntime")
    quantizers = network.quantizers.children() if hasattr(network, "quantizers") else ()
    has_codes = any(isinstance(point, Quantized) for point in quantizers)
    here = integer.lower(network, arithmetic="float32", batch_size=BATCH) if has_codes else network
    with runtime.exact():
        return evaluate.logits(here, images, labels, batch_size=BATCH).cpu(), _step(here)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels.cpu()).double().mean().item()


def _compared(path: str | Path, expected: Tensor, step: float, images: Tensor, labels: Tensor) -> pandas.DataFrame:
    """The rows of `deployed`."""
    rows = []
    for setting, (optimized, precise) in SETTINGS.items():
        try:
            logits = _run(path, images, optimized=optimized, precise=precise)
        except Exception as error:  # onnxruntime's own classes of errors have no common base
            reason = str(error).split("\n", 1)[0]
            warnings.warn(f"onnxruntime does not run the file with {setting}: {reason}", stacklevel=3)
            rows.append({"setting": setting, "accuracy": _accuracy(expected, labels)})
            continue
        rows.append({
            "setting": setting,
            "accuracy": _accuracy(expected, labels),
            "deployed_accuracy": _accuracy(logits, labels),
            "differing": (logits.argmax(1) != expected.argmax(1)).double().mean().item(),
            "largest_difference": ((logits.double() - expected.double()).abs().max() / step).item(),
        })  # fmt: skip
    return pandas.DataFrame(rows, columns=COLUMNS)


def _step(here: nn.Module) -> float:
    """What one step of the logits is worth; 1 if they have no format."""
    if not isinstance(here, torch.fx.GraphModule):
        return 1.0
    (last,) = next(iter(reversed(here.graph.nodes))).all_input_nodes
    part = here.get_submodule(last.target) if last.op == "call_module" else None
    return part.scale.item() if isinstance(part, Value) and part.scale.numel() == 1 else 1.0


def _run(path: str | Path, images: Tensor, *, optimized: bool, precise: bool) -> Tensor:
    """The logits that onnxruntime computes on the processor with as many threads as torch."""
    library = required("onnxruntime")
    options, levels = library.SessionOptions(), library.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batches = data.batches(images, torch.zeros(len(images)), BATCH)
    return torch.cat([torch.from_numpy(session.run(None, {"pixels": x.cpu().numpy()})[0]) for x, _ in batches])
