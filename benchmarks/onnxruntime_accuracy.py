"""What 8 and 4 bits cost ten networks of different make here, and in onnxruntime's own static quantization.

    python -m benchmarks.onnxruntime_accuracy IMAGES FOLDER TABLE           3,000 test images
    python -m benchmarks.onnxruntime_accuracy IMAGES FOLDER TABLE 10000     8 bits by default and with zero points, on
                                                                            so many test images, calibrated three times

IMAGES and FOLDER as for `benchmarks.networks`, which trains the ten. The rows go to TABLE, a CSV file, after each
network; the same command goes on where it was interrupted. Both sides see the same 256 calibration images and are
scored on the same test images. onnxruntime runs without graph optimization, so that it computes what its quantized file
says, on any processor. Quantization turns some right answers wrong and some wrong ones right, so that accuracies differ
by chance, too; `differs` is the share of images to which it gives another class than the float network.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy
import onnxruntime
import pandas
import torch
from onnxruntime import quantization as peer
from scipy import stats
from torch import Tensor, nn

from benchmarks.networks import SOURCES
from rqlib import data, measures, quantization, workbook
from rqlib.core import files, machine, runtime

CALIBRATION_IMAGES, TEST_IMAGES, BATCH = 256, 3000, 100
CALIBRATIONS = 3  # of the second command, each on images of its own
OBSERVERS = {"minmax": peer.CalibrationMethod.MinMax, "percentile": peer.CalibrationMethod.Percentile}


class _Reader(peer.CalibrationDataReader):
    """The calibration images in batches, as onnxruntime wants to read them."""

    def __init__(self, images: Tensor):
        self.batches = iter((images.float() / 255).contiguous().split(32))

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch.numpy()}


def rows(name: str, folder: Path, images: data.ImageDataset, count: int, *, calibrations: int = 0) -> list[dict]:
    """The rows of one network on ``count`` test images.

    ``calibrations``: how often it is calibrated, in the settings of the second command; 0 for those of the first.
    """
    source = {key: value for key, value in SOURCES[name].items() if key != "epochs"}
    model, about = workbook.network(source.pop("network"), images, weights=folder / f"{name}.pt", **source)
    test = images.test.take(count)
    with runtime.exact():
        classes = measures.logits(model, *test).argmax(1)
        found = [{"by": "float", "accuracy": _share(classes == test.labels), "differs": 0.0}]
        for index in range(max(calibrations, 1)):
            first = index * CALIBRATION_IMAGES
            calibration = images.train.images[first : first + CALIBRATION_IMAGES]
            ours = OF_ZERO_POINTS if calibrations else OF_EVERYTHING
            for by, quantized, settings in (("rqlib", _ours, ours), ("onnxruntime", _theirs, OF_ONNXRUNTIME)):
                for setting in settings:
                    given = quantized(model, calibration, test, **setting)
                    scores = {"accuracy": _share(given == test.labels), "differs": _share(given != classes)}
                    found.append({"by": by, **setting, "calibration": index, **scores})
    return [{"network": name, "images": images.title, **row} for row in found]


def _settings(*formats_ranges_codes: tuple[str, str, str]) -> list[dict]:
    """Each of these with one scale per tensor and one per channel."""
    return [
        {"format": format, "granularity": granularity, "ranges": ranges, "nonnegative": nonnegative}
        for granularity in ("tensor", "channel")
        for format, ranges, nonnegative in formats_ranges_codes
    ]


OF_ONNXRUNTIME = _settings(*(("INT_8", ranges, "zero_point") for ranges in OBSERVERS))
OF_ZERO_POINTS = _settings(("INT_8", "mse", "unsigned"), ("INT_8", "mse", "zero_point"))
OF_EVERYTHING = _settings(
    *(("INT_8", ranges, "unsigned") for ranges in ("mse", "minmax", "percentile")),
    ("INT_8", "mse", "zero_point"),
    *(("INT_4", "mse", codes) for codes in ("zero_point", "unsigned", "signed")),
)


def _share(chosen: Tensor) -> float:
    return chosen.float().mean().item()


def _ours(model: nn.Module, calibration: Tensor, test: data.Split, *, format: str, **setting) -> Tensor:
    """The class that each image has for a network that is quantized here."""
    return measures.logits(quantization.ptq(model, format, calibration, **setting), *test).argmax(1)


def _theirs(
    model: nn.Module, calibration: Tensor, test: data.Split, *, granularity: str, ranges: str, **fixed
) -> Tensor:
    """The class that each image has for a network that onnxruntime has quantized: INT_8, signals with zero points."""
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
        return _classes(quantized, test.images)


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


def _classes(path: str, pictures: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batches = (pictures.float() / 255).contiguous().split(BATCH)
    logits = numpy.concatenate([session.run(None, {"pixels": batch.numpy()})[0] for batch in batches])
    return torch.from_numpy(logits.argmax(1))


def summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Accuracy minus onnxruntime's at 8 bits in points, by the codes of signals, and the same of `differs`.

    Mean over networks and calibrations, its 95% interval over networks (Student's t), and the worst network.
    """
    eight = table[(table.format == "INT_8") & (table.nonnegative != "signed")]
    means = eight.groupby(["by", "granularity", "ranges", "nonnegative", "network"])[["accuracy", "differs"]].mean()
    found = []
    for (granularity, ranges, _), theirs in means.loc["onnxruntime"].groupby(level=[0, 1, 2]):
        for (codes,), ours in means.loc[("rqlib", granularity, "mse")].groupby(level=[0]):
            for measure in ("accuracy", "differs"):
                ahead = 100 * (ours[measure].droplevel(0) - theirs[measure].droplevel([0, 1, 2]))
                half = stats.t.ppf(0.975, len(ahead) - 1) * ahead.std() / len(ahead) ** 0.5
                worst = ahead.min() if measure == "accuracy" else ahead.max()
                row = {"granularity": granularity, "onnxruntime": ranges, "codes": codes, "measure": measure}
                limits = {"low": ahead.mean() - half, "high": ahead.mean() + half}
                found.append(row | {"mean": ahead.mean()} | limits | {"worst": worst})
    return pandas.DataFrame(found)


def lost(table: pandas.DataFrame) -> pandas.DataFrame:
    """Points of accuracy that 8 bits cost, and the share of images that change their class, mean over all else."""
    of_float = table[table.by == "float"].set_index("network").accuracy
    eight = table[table.format == "INT_8"]
    eight = eight.assign(lost=100 * (eight.network.map(of_float) - eight.accuracy), differs=100 * eight.differs)
    return eight.groupby(["by", "ranges", "nonnegative"])[["lost", "differs"]].mean()


def _begun(target: Path, command: str) -> pandas.DataFrame:
    """The rows that this command has written already."""
    if not target.exists():
        return pandas.DataFrame(columns=["network"])
    table = pandas.read_csv(target)
    if set(table.command) != {command} or "differs" not in table:
        raise ValueError(f"expected a table of `{command}` in {target}, got another one; remove it, or name a new file")
    return table


def main(archive: str, folder: str, target: str, count: str = "") -> None:
    runtime.use("cpu", "float32")
    images = data.load(f"imagefolder:{archive}")
    described = machine.describe()
    common = {
        "calibration_images": CALIBRATION_IMAGES,
        "test_images": int(count or TEST_IMAGES),
        "machine": f"{described['processor']}, {described['cores']} cores, torch {described['torch']}",
        "onnxruntime": onnxruntime.__version__,
        "command": f"python -m benchmarks.onnxruntime_accuracy IMAGES FOLDER TABLE {count}".rstrip(),
    }
    table = _begun(Path(target), common["command"])
    for name in SOURCES:
        if name in set(table.network):
            continue
        more = rows(name, Path(folder), images, int(count or TEST_IMAGES), calibrations=CALIBRATIONS if count else 0)
        print(pandas.DataFrame(more).drop(columns="images").to_string(index=False), flush=True)
        table = pandas.concat([table, pandas.DataFrame(more).assign(**common)], ignore_index=True)
        with files.atomic(Path(target)) as part:
            table.to_csv(part, index=False, float_format="%.5g")
    print(summary(table).round(3).to_string(index=False))
    print(lost(table).round(3).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
