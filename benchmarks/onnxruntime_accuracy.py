"""What 8 and 4 bits cost ten networks of different make here, and in onnxruntime's own static quantization.

    python -m benchmarks.onnxruntime_accuracy IMAGES FOLDER TABLE           3,000 test images
    python -m benchmarks.onnxruntime_accuracy IMAGES FOLDER TABLE 10000     8 bits by default and with biases corrected,
                                                                            on so many test images

IMAGES and FOLDER as for `benchmarks.networks`, which trains the ten. The rows go to TABLE, a CSV file. Both sides
see the same 256 calibration images and are scored on the same test images. onnxruntime runs without graph
optimization, so that it computes what its quantized file says, on any processor.
"""

import functools
import sys
import tempfile
import warnings
from pathlib import Path

import numpy
import onnxruntime
import pandas
import torch
from onnxruntime import quantization as peer
from torch import Tensor, nn

from benchmarks.networks import SOURCES
from rqlib import data, measures, quantization, workbook
from rqlib.core import files, machine, runtime

CALIBRATION_IMAGES, TEST_IMAGES, BATCH = 256, 3000, 100
OBSERVERS = {"minmax": peer.CalibrationMethod.MinMax, "percentile": peer.CalibrationMethod.Percentile}


class _Reader(peer.CalibrationDataReader):
    """The calibration images in batches, as onnxruntime wants to read them."""

    def __init__(self, images: Tensor):
        self.batches = iter((images.float() / 255).contiguous().split(32))

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch.numpy()}


def rows(name: str, folder: Path, images: data.ImageDataset, count: int, *, default_only: bool) -> list[dict]:
    """The rows of one network on ``count`` test images; ``default_only`` is as the second command."""
    source = {key: value for key, value in SOURCES[name].items() if key != "epochs"}
    model, about = workbook.network(source.pop("network"), images, weights=folder / f"{name}.pt", **source)
    test, calibration = images.test.take(count), images.calibration(CALIBRATION_IMAGES)
    with runtime.exact():
        score = functools.partial(_ours, model, calibration, test)
        found = [{"by": "float", "accuracy": measures.accuracy(model, *test)}]
        for granularity in ("tensor", "channel"):
            for ranges in ("mse",) if default_only else ("mse", "minmax", "percentile"):
                found.append(score("INT_8", granularity, ranges, "unsigned"))
            found.append(score("INT_8", granularity, "mse", "unsigned", repairs="bias_correction"))
            for nonnegative in () if default_only else ("unsigned", "signed"):
                found.append(score("INT_4", granularity, "mse", nonnegative))
            found += [_theirs(model, calibration, test, granularity, ranges) for ranges in OBSERVERS]
    return [{"network": name, "images": images.title, **row} for row in found]


def _ours(
    model: nn.Module, calibration: Tensor, test: data.Split, format, granularity, ranges, nonnegative, repairs=""
) -> dict:
    setting = {"granularity": granularity, "ranges": ranges, "nonnegative": nonnegative}
    network = quantization.ptq(model, format, calibration, **setting, repairs=repairs.split())
    return {
        "by": "rqlib",
        "format": format,
        **setting,
        "repairs": repairs,
        "accuracy": measures.accuracy(network, *test),
    }


def _theirs(model: nn.Module, calibration: Tensor, test: data.Split, granularity: str, ranges: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantized = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "prepared", "quantized"))
        _export(model, plain, images=calibration)
        peer.shape_inference.quant_pre_process(plain, prepared)
        peer.quantize_static(
            prepared,
            quantized,
            _Reader(calibration),
            per_channel=granularity == "channel",
            activation_type=peer.QuantType.QUInt8,
            weight_type=peer.QuantType.QInt8,
            calibrate_method=OBSERVERS[ranges],
        )
        accuracy = _accuracy(quantized, test)
    setting = {"granularity": granularity, "ranges": ranges, "nonnegative": "zero point", "repairs": ""}
    return {"by": "onnxruntime", "format": "INT_8", **setting, "accuracy": accuracy}


def _export(model: nn.Module, path: str, *, images: Tensor) -> None:
    """The float network as an ONNX file, by torch's own exporter."""
    x = (images[:2].float() / 255).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            *(model.to(memory_format=torch.contiguous_format), (x,), path),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _accuracy(path: str, test: data.Split) -> float:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batches = (test.images.float() / 255).contiguous().split(BATCH)
    logits = numpy.concatenate([session.run(None, {"pixels": batch.numpy()})[0] for batch in batches])
    return (logits.argmax(1) == test.labels.numpy()).mean().item()


def summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Accuracy minus onnxruntime's at 8 bits, by default and with biases corrected: mean and worst network."""
    eight = table[(table.format == "INT_8") & (table.nonnegative != "signed")]
    theirs = eight[eight.by == "onnxruntime"].set_index(["granularity", "ranges", "network"]).accuracy
    ours = eight[(eight.by == "rqlib") & (eight.ranges == "mse")]
    ahead = {}
    for repairs, rows in ours.groupby(ours.repairs.replace("", "default")):
        ahead[repairs] = rows.set_index(["granularity", "network"]).accuracy - theirs
    return pandas.concat(ahead, axis=1).groupby(["granularity", "ranges"]).agg(["mean", "min"])


def main(archive: str, folder: str, target: str, count: str = "") -> None:
    runtime.use("cpu", "float32")
    images = data.load(f"imagefolder:{archive}")
    found: list[dict] = []
    for name in SOURCES:
        found += rows(name, Path(folder), images, int(count or TEST_IMAGES), default_only=bool(count))
        of_this = [row for row in found if row["network"] == name]
        print(pandas.DataFrame(of_this).drop(columns="images").to_string(index=False), flush=True)
    described = machine.describe()
    table = pandas.DataFrame(found).assign(
        calibration_images=CALIBRATION_IMAGES,
        test_images=int(count or TEST_IMAGES),
        machine=f"{described['processor']}, {described['cores']} cores, torch {described['torch']}",
        onnxruntime=onnxruntime.__version__,
        command=f"python -m benchmarks.onnxruntime_accuracy IMAGES FOLDER TABLE {count}".rstrip(),
    )
    with files.atomic(Path(target)) as part:
        table.to_csv(part, index=False, float_format="%.5g")
    print(summary(table).round(4).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
