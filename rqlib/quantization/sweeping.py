"""The sweep: one network in many formats, each scored on labeled images."""

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
    batch_size: int = 100,
    checkpoint: str | Path | None = None,
) -> pandas.DataFrame:
    """Quantize one network to many formats and score each on labeled images: one row a format.

    It calibrates once, runs the integer form (`quantization.lower`) of one format at a time, so that memory does
    not grow with their number, and computes formats of equal values once. Its numbers do not depend on the
    precision policy: ranges and the float network are computed in float32, and codes are multiplied by a
    lower-precision backend only where it holds them exactly (`integer.best_arithmetic`), with sums of float32 or
    better: 8-bit integers up to 127 steps, TF32 up to 11 significant bits. bfloat16 would hold up to 8, but
    torch's bfloat16 convolutions round their sums to 8 bits too, so it is not used.

    Args:
        formats: of weights and signals; `quantization.GRID`, say.
        images, labels: what is scored, uint8 (N, C, H, W) and int64 (N,).
        measures: names of `similarity.MEASURES`.
        per_layer: instead, one row a layer and format, with the weight of that layer alone quantized and the
            rest float: the sensitivity table, from which `quantization.allocate` divides bits.
        checkpoint: file of the finished rows; an interrupted sweep goes on from it.
        Others as in `ptq`.

    Returns:
        Columns: (layer, params,) format, kind, bits, exponent_bits, significant_bits, duplicate_of (the format
        of equal values or None), accuracy, float_accuracy, accuracy_loss (``(float - quantized) / float``),
        agreement (fraction classified as the float network does), logit_error (``||z_q - z||^2 / ||z||^2``),
        the figures of each measure and the same divided by the network's own at INT_4 (not per layer),
        coded_bits of the weights (scales are not counted; `measures.storage` counts them), arithmetic, seconds.

    Raises:
        ValueError: as `ptq`; an unknown format, before anything is computed; images that are none; a checkpoint
            of another sweep.
    """
    if len(images) == 0:
        raise ValueError("expected images to score, got none")
    chosen, measures = [parse(format) for format in formats], tuple(measures)
    identity = {
        "network": fingerprint(model.state_dict()),
        "calibration images": fingerprint(calibration_images),
        "images": fingerprint(images, labels),
        "options": [granularity, ranges, bias, *measures, "per layer" if per_layer else "whole"],
    }
    kept = Resumable(checkpoint, identity, kind="sweep")
    rows = kept.load().get("rows", {})
    with runtime.tf32(False):
        calibrated = calibration.calibrate(model, calibration_images, ranges=ranges, activations=not per_layer)
        bench = _Bench(calibrated, images, labels, measures, granularity, batch_size)
    names = [name for name, _ in layers.weighted_layers(calibrated.network)] if per_layer else [""]
    wanted = [(name, format) for format in chosen for name in names]
    missing = [(name, format) for name, format in wanted if (name, format.name) not in rows]
    for name, format in runtime.freeing(runtime.progress(missing, "formats")):
        if bias == "float" and (name, format.duplicate_of) in rows:
            scores = {**rows[name, format.duplicate_of], "seconds": 0.0}
        else:
            scores = bench.layer_scores(name, format) if per_layer else bench.scores(format, bias)
        rows[name, format.name] = _describe(name, format) | scores | _describe(name, format)
        kept.save(rows=rows)
    frame = pandas.DataFrame([rows[name, format.name] for name, format in wanted])
    return frame if per_layer else frame.drop(columns="layer")


def _describe(layer: str, format: Format) -> dict:
    columns = ("kind", "bits", "exponent_bits", "significant_bits", "duplicate_of")
    return {"layer": layer, "format": format.name, **{column: getattr(format, column) for column in columns}}


class _Bench:
    """What every row of a sweep is compared with: the float network's logits, and its weights."""

    def __init__(self, calibrated: Calibrated, images, labels: Tensor, measures, granularity: str, batch_size: int):
        self.calibrated, self.images, self.labels, self.batch_size = calibrated, images, labels.cpu(), batch_size
        self.granularity, self.measures = granularity, tuple(measures)
        self.float_logits = self._logits(calibrated.network)
        self.reference = similarity.Reference(calibrated.network, _spec(images))
        self.at_int4 = self._figures(
            post_training.apply(calibrated, INT(4), granularity=granularity, activations=False)
        )

    def scores(self, format: Format, bias: str) -> dict:
        """The whole network on one format."""
        start = time.perf_counter()
        network = post_training.apply(self.calibrated, format, granularity=self.granularity, bias=bias)
        arithmetic = integer.best_arithmetic(format, runtime.active().device)
        lowered = integer.lower(network, arithmetic="int8" if arithmetic == "int8" else "float32")
        with runtime.tf32(arithmetic == "tf32"):
            compared = self._compared(self._logits(lowered))
        figures = self._figures(network)
        return {
            **compared,
            **figures,
            **similarity.normalized(figures, self.at_int4),
            "coded_bits": cost.weight_count(network) * format.bits,
            "arithmetic": arithmetic,
            "seconds": time.perf_counter() - start,
        }

    def layer_scores(self, layer: str, format: Format) -> dict:
        """The float network with the weight of one layer on a format."""
        start = time.perf_counter()
        network = post_training.apply(self.calibrated, {layer: format}, granularity=self.granularity, activations=False)
        with runtime.tf32(False):
            compared = self._compared(self._logits(network))
        params = network.get_submodule(layer).weight.numel()
        seconds = time.perf_counter() - start
        return {"params": params, **compared, "coded_bits": params * format.bits, "seconds": seconds}

    def _logits(self, network: nn.Module) -> Tensor:
        with runtime.using(str(runtime.active().device), "float32"):
            return evaluate.logits(network, self.images, self.labels, batch_size=self.batch_size)

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

    def _figures(self, network: nn.Module) -> dict[str, float]:
        return {
            name: value
            for measure in self.measures
            for name, value in similarity.figures(self.reference.compare(network, measure)).items()
        }


def _spec(images) -> ImageSpec:
    """The shape of the images; of their normalization nothing is known here, nor needed."""
    channels, height, width = images.shape[1:]
    return ImageSpec(channels, height, width, mean=(0.5,) * channels, std=(0.5,) * channels)
