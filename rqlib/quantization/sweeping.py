"""The sweep: one network is put into many formats, and each is scored on labeled images, of one set or several."""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas
from torch import Tensor, nn

from rqlib.core import layers, runtime
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import Split
from rqlib.measures import cost, evaluate
from rqlib.quantization import calibration, integer, post_training, similarity
from rqlib.quantization.calibration import Calibrated
from rqlib.quantization.formats import INT, Format, parse
from rqlib.quantization.post_training import Formats

BATCH, GPU_BATCH = 100, 500
"""Images per forward pass: on a processor few stay in its cache, and a GPU waits for fewer small kernels. So many
images of 32x32 pixels on a GPU; of larger ones fewer, but no fewer than on a processor."""
WEIGHTS_ONLY = "weights only"
"""What stands in the column ``arithmetic`` if torch.fx cannot trace the network, so that its signals stay in float."""


def sweep(
    model: nn.Module,
    formats: Iterable[Format | str],
    calibration_images: Tensor,
    images: Tensor,
    labels: Tensor,
    **options,
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
        options: as `sweep_sets` takes them.

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
        arithmetic (not per layer): how codes are multiplied, or `WEIGHTS_ONLY`;
        seconds.

    Raises:
        ValueError: as `quantization.ptq`; a format is unknown, which is said before anything is computed; there are no
            images; the checkpoint belongs to another sweep.
    """
    sets = {"images": Split(images, labels)}
    return sweep_sets(model, formats, calibration_images, sets, **options)["images"]


def sweep_sets(
    model: nn.Module,
    formats: Iterable[Format | str],
    calibration_images: Tensor,
    sets: Mapping[str, Split],
    *,
    granularity: str = "tensor",
    ranges: str = "mse",
    nonnegative: str = "unsigned",
    bias: str = "float",
    measures: Iterable[str] = ("js", "relative_error"),
    per_layer: bool = False,
    checkpoint: str | Path | None = None,
) -> dict[str, pandas.DataFrame]:
    """`sweep` on several sets of labeled images: name -> table. Each network is quantized once, not once per set.

    Args:
        sets: name -> images uint8 (N, C, H, W) and labels int64 (N,); all images of one size.
        model, formats, calibration_images: as `sweep` takes them.
        measures: names of `similarity.MEASURES`.
        per_layer: if True, only the weight of one layer at a time is quantized and everything else stays float. The
            result has one row per layer and format: it is the sensitivity table by which `quantization.allocate`
            divides a budget of bits.
        checkpoint: a file that keeps the finished rows; an interrupted sweep goes on from it.
        granularity, ranges, nonnegative, bias: as `quantization.ptq` takes them.

    Returns:
        One table per set, as of `sweep`; ``seconds`` counts all sets.

    Raises:
        ValueError: as `sweep`; there is no set; images of several sizes.
    """
    if not sets or any(len(images) == 0 for images, _ in sets.values()):
        raise ValueError("expected images to score, got none")
    chosen, measures = [parse(format) for format in formats], tuple(measures)
    sets = {name: Split(images[:], labels) for name, (images, labels) in sets.items()}  # files are read once
    if len(sizes := {tuple(images.shape[1:]) for images, _ in sets.values()}) > 1:
        raise ValueError(f"expected images of one size in all sets, got {', '.join(map(str, sorted(sizes)))}")
    identity = {
        "network": fingerprint(model.state_dict()),
        "calibration images": fingerprint(calibration_images),
        "sets": {name: fingerprint(*split) for name, split in sets.items()},
        "options": [granularity, ranges, nonnegative, bias, *measures, "per layer" if per_layer else "whole"],
    }
    state = Resumable(checkpoint, identity, kind="sweep")
    rows = state.load().get("rows", {})
    with runtime.tf32(False):
        calibrated = calibration.calibrate(model, calibration_images, ranges=ranges, activations=not per_layer)
        options = {"granularity": granularity, "nonnegative": nonnegative, "bias": bias}
        bench = _Bench(calibrated, sets, measures, options)
    names = [name for name, _ in layers.weighted_layers(calibrated.network)] if per_layer else [""]
    wanted = [(name, format) for format in chosen for name in names]
    missing = [(name, format) for name, format in wanted if (name, format.name) not in rows]
    for name, format in runtime.freeing(runtime.progress(missing, "formats")):
        # Formats of equal values differ in nothing but their biases under ``seed``.
        twin = rows.get((name, format.duplicate_of)) if bias == "float" else None
        scores = bench.scores(name, format) if twin is None else _without_work(twin)
        rows[name, format.name] = {one: _described(name, format, found) for one, found in scores.items()}
        state.save(rows=rows)
    tables = {one: pandas.DataFrame([rows[name, format.name][one] for name, format in wanted]) for one in sets}
    return tables if per_layer else {one: table.drop(columns="layer") for one, table in tables.items()}


def _without_work(rows: dict[str, dict]) -> dict[str, dict]:
    """The rows of a format of equal values, set by set; they took no time."""
    return {one: row | {"seconds": 0.0} for one, row in rows.items()}


def _described(layer: str, format: Format, scores: dict) -> dict:
    """A row: the layer, what the format is, and its scores or the row of a format of equal values."""
    columns = ("kind", "bits", "exponent_bits", "significant_bits", "duplicate_of")
    described = {"layer": layer, "format": format.name, **{column: getattr(format, column) for column in columns}}
    return described | scores | described


class _Bench:
    """Scores formats against the float network, whose logits and weights it holds: name of a set -> scores on it."""

    def __init__(self, calibrated: Calibrated, sets: Mapping[str, Split], measures, options: dict[str, str]):
        self.calibrated, self.sets = calibrated, sets
        self.options, self.measures = options, tuple(measures)
        self.spec = _spec(next(iter(sets.values())).images)
        self.float_logits = self._logits(calibrated.network)
        self.reference = similarity.Reference(calibrated.network, self.spec)
        self.at_int4 = self.reference.figures(self._weights_in(INT(4)), self.measures)

    def scores(self, layer: str, format: Format) -> dict[str, dict]:
        """The scores of one layer in a format, or of the whole network if ``layer`` is empty."""
        return self._of_layer(layer, format) if layer else self._of_network(format)

    def _weights_in(self, format: Formats) -> nn.Module:
        """The network with weights in a format and signals in float."""
        return post_training.apply(self.calibrated, format, granularity=self.options["granularity"], activations=False)

    def _of_network(self, format: Format) -> dict[str, dict]:
        start = time.perf_counter()
        network, arithmetic = post_training.apply(self.calibrated, format, **self.options), WEIGHTS_ONLY
        if self.calibrated.signals:
            arithmetic = integer.best_arithmetic(network, runtime.active().device)
        with runtime.tf32(arithmetic == "tf32"):
            lowered = network if arithmetic == WEIGHTS_ONLY else _lowered(network, arithmetic, _batch(self.spec))
            logits = self._logits(lowered)
        figures = self.reference.figures(network, self.measures)
        of_all = {
            **figures,
            **similarity.normalized(figures, self.at_int4),
            "coded_bits": cost.weight_count(network) * format.bits,
            "arithmetic": arithmetic,
            "seconds": time.perf_counter() - start,
        }
        return {name: {**self._compared(name, one), **of_all} for name, one in logits.items()}

    def _of_layer(self, layer: str, format: Format) -> dict[str, dict]:
        start = time.perf_counter()
        network = self._weights_in({layer: format})
        with runtime.tf32(False):
            logits = self._logits(network)
        params = network.get_submodule(layer).weight.numel()
        of_all = {"coded_bits": params * format.bits, "seconds": time.perf_counter() - start}
        return {name: {"params": params, **self._compared(name, one), **of_all} for name, one in logits.items()}

    def _logits(self, network: nn.Module) -> dict[str, Tensor]:
        with runtime.using(str(runtime.active().device), "float32"):
            size = _batch(self.spec)
            return {name: evaluate.logits(network, *split, batch_size=size) for name, split in self.sets.items()}

    def _compared(self, name: str, logits: Tensor) -> dict:
        expected, labels = self.float_logits[name], self.sets[name].labels.cpu()
        float_classes, classes = expected.argmax(1), logits.argmax(1)
        float_accuracy = (float_classes == labels).double().mean().item()
        accuracy = (classes == labels).double().mean().item()
        return {
            "accuracy": accuracy,
            "float_accuracy": float_accuracy,
            "accuracy_loss": (float_accuracy - accuracy) / float_accuracy if float_accuracy else math.nan,
            "agreement": (classes == float_classes).double().mean().item(),
            "logit_error": ((logits - expected).square().sum() / expected.square().sum()).item(),
        }


def _batch(spec: ImageSpec) -> int:
    on_gpu = runtime.active().device.type != "cpu"
    return max(BATCH, GPU_BATCH * 32 * 32 // (spec.height * spec.width)) if on_gpu else BATCH


def _lowered(network: nn.Module, arithmetic: str, batch_size: int) -> nn.Module:
    return integer.lower(network, arithmetic="int8" if arithmetic == "int8" else "float32", batch_size=batch_size)


def _spec(images) -> ImageSpec:
    """The shape of the images. Their normalization is not known here; it does not matter to a profile."""
    channels, height, width = images.shape[1:]
    return ImageSpec(channels, height, width, mean=(0.5,) * channels, std=(0.5,) * channels)
