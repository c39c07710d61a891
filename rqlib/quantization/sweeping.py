"""The sweep: one network is put into many formats, and each of them is scored on labeled images."""

import math
import time
from collections.abc import Iterable
from pathlib import Path

import pandas
from torch import Tensor, nn

from rqlib.core import layers, runtime
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost, evaluate
from rqlib.quantization import calibration, integer, post_training, similarity
from rqlib.quantization.calibration import Calibrated
from rqlib.quantization.formats import INT, Format, parse

BATCH = 100


def sweep(
    model: nn.Module,
    formats: Iterable[Format | str],
    calibration_images: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    granularity: str = "tensor",
    ranges: str = "minmax",
    bias: str = "float",
    measures: Iterable[str] = ("js", "relative_error"),
    per_layer: bool = False,
    checkpoint: str | Path | None = None,
) -> pandas.DataFrame:
    """Quantize one network to many formats and score each on labeled images: one row per format.

    The network is calibrated once. Then the integer form (`quantization.lower`) of one format at a time is evaluated,
    so memory does not grow with the number of formats. Formats of equal values are computed once.

    The numbers do not depend on the precision policy. Ranges and the float network are computed in float32. Codes are
    multiplied in a lower precision only if it holds them exactly and sums them in float32 or better
    (`integer.best_arithmetic`). bfloat16 is not used: torch's convolutions would round their sums to 8 bits, too.

    Args:
        formats: of weights and signals, such as `quantization.GRID`.
        images, labels: what is scored, uint8 (N, C, H, W) and int64 (N,).
        measures: names of `similarity.MEASURES`.
        per_layer: if True, only the weight of one layer at a time is quantized and everything else stays float. The
            result has one row per layer and format: it is the sensitivity table by which `quantization.allocate`
            divides a budget of bits.
        checkpoint: a file that keeps the finished rows; an interrupted sweep goes on from it.
        granularity, ranges, bias: as `quantization.ptq` takes them.

    Returns:
        A table with these columns, those in parentheses only per layer:
        (layer, its name; params, the number of its weights;)
        format, kind, bits, exponent_bits, significant_bits;
        duplicate_of: the format of equal values, or None;
        accuracy, float_accuracy, and accuracy_loss, ``(float_accuracy - accuracy) / float_accuracy``;
        agreement: the fraction of images that are classified as the float network classifies them;
        logit_error: ``||z_q - z||^2 / ||z||^2`` of the logits;
        not per layer, the figures of each measure, and the same divided by those of this network at INT_4;
        coded_bits: of the weights, without scales (`measures.storage` counts scales, too);
        arithmetic (not per layer), seconds.

    Raises:
        ValueError: as `quantization.ptq`; a format is unknown, which is said before anything is computed; there are no
            images; the checkpoint belongs to another sweep.
    """
    if len(images) == 0:
        raise ValueError("expected images to score, got none")
    chosen, measures = [parse(format) for format in formats], tuple(measures)
    images = images[:]  # images in files are read once, not once per format
    identity = {
        "network": fingerprint(model.state_dict()),
        "calibration images": fingerprint(calibration_images),
        "images": fingerprint(images, labels),
        "options": [granularity, ranges, bias, *measures, "per layer" if per_layer else "whole"],
    }
    state = Resumable(checkpoint, identity, kind="sweep")
    rows = state.load().get("rows", {})
    with runtime.tf32(False):
        calibrated = calibration.calibrate(model, calibration_images, ranges=ranges, activations=not per_layer)
        bench = _Bench(calibrated, images, labels, measures, granularity)
    names = [name for name, _ in layers.weighted_layers(calibrated.network)] if per_layer else [""]
    wanted = [(name, format) for format in chosen for name in names]
    missing = [(name, format) for name, format in wanted if (name, format.name) not in rows]
    for name, format in runtime.freeing(runtime.progress(missing, "formats")):
        # Formats of equal values differ in nothing but their biases under ``seed``.
        twin = rows.get((name, format.duplicate_of)) if bias == "float" else None
        scores = bench.scores(name, format, bias) if twin is None else twin | {"seconds": 0.0}
        rows[name, format.name] = _described(name, format, scores)
        state.save(rows=rows)
    frame = pandas.DataFrame([rows[name, format.name] for name, format in wanted])
    return frame if per_layer else frame.drop(columns="layer")


def _described(layer: str, format: Format, scores: dict) -> dict:
    """A row: the layer, what the format is, and its scores or the row of a format of equal values."""
    columns = ("kind", "bits", "exponent_bits", "significant_bits", "duplicate_of")
    described = {"layer": layer, "format": format.name, **{column: getattr(format, column) for column in columns}}
    return described | scores | described


class _Bench:
    """Scores formats against the float network, whose logits and weights it holds."""

    def __init__(self, calibrated: Calibrated, images, labels: Tensor, measures, granularity: str):
        self.calibrated, self.images, self.labels = calibrated, images, labels.cpu()
        self.granularity, self.measures = granularity, tuple(measures)
        self.float_logits = self._logits(calibrated.network)
        self.reference = similarity.Reference(calibrated.network, _spec(images))
        int4 = post_training.apply(calibrated, INT(4), granularity=granularity, activations=False)
        self.at_int4 = self.reference.figures(int4, self.measures)

    def scores(self, layer: str, format: Format, bias: str) -> dict:
        """The scores of one layer in a format, or of the whole network if ``layer`` is empty."""
        return self._of_layer(layer, format) if layer else self._of_network(format, bias)

    def _of_network(self, format: Format, bias: str) -> dict:
        start = time.perf_counter()
        network = post_training.apply(self.calibrated, format, granularity=self.granularity, bias=bias)
        arithmetic = integer.best_arithmetic(format, runtime.active().device)
        lowered = integer.lower(network, arithmetic="int8" if arithmetic == "int8" else "float32")
        with runtime.tf32(arithmetic == "tf32"):
            compared = self._compared(self._logits(lowered))
        figures = self.reference.figures(network, self.measures)
        return {
            **compared,
            **figures,
            **similarity.normalized(figures, self.at_int4),
            "coded_bits": cost.weight_count(network) * format.bits,
            "arithmetic": arithmetic,
            "seconds": time.perf_counter() - start,
        }

    def _of_layer(self, layer: str, format: Format) -> dict:
        start = time.perf_counter()
        network = post_training.apply(self.calibrated, {layer: format}, granularity=self.granularity, activations=False)
        with runtime.tf32(False):
            compared = self._compared(self._logits(network))
        params = network.get_submodule(layer).weight.numel()
        seconds = time.perf_counter() - start
        return {"params": params, **compared, "coded_bits": params * format.bits, "seconds": seconds}

    def _logits(self, network: nn.Module) -> Tensor:
        with runtime.using(str(runtime.active().device), "float32"):
            return evaluate.logits(network, self.images, self.labels, batch_size=BATCH)

    def _compared(self, logits: Tensor) -> dict:
        float_classes, classes = self.float_logits.argmax(1), logits.argmax(1)
        float_accuracy = (float_classes == self.labels).double().mean().item()
        accuracy = (classes == self.labels).double().mean().item()
        return {
            "accuracy": accuracy,
            "float_accuracy": float_accuracy,
            "accuracy_loss": (float_accuracy - accuracy) / float_accuracy if float_accuracy else math.nan,
            "agreement": (classes == float_classes).double().mean().item(),
            "logit_error": ((logits - self.float_logits).square().sum() / self.float_logits.square().sum()).item(),
        }


def _spec(images) -> ImageSpec:
    """The shape of the images. Their normalization is not known here; it does not matter to a profile."""
    channels, height, width = images.shape[1:]
    return ImageSpec(channels, height, width, mean=(0.5,) * channels, std=(0.5,) * channels)
