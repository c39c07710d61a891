"""What is known of a network without any image: how far each format moves its weights, and how many bits it takes."""

from collections.abc import Iterable

from pandas import DataFrame
from torch import nn

from rqlib import models, quantization
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.quantization import Format, calibration, post_training, similarity

MEASURES = tuple(similarity.MEASURES)


def open_network(source: str, spec: ImageSpec, *, weights: str = "") -> tuple[nn.Module, ImageSpec]:
    """The network of a checkpoint of 01_train, or of a name and weights, and the images that it takes.

    Args:
        source: path of a checkpoint; or a name that `models.build` takes (``torchvision:resnet18``).
        spec: the images that a network given by its name takes. A checkpoint says that itself.
        weights: path of a state dict, for a network given by its name.

    Raises:
        FileNotFoundError, ValueError: as `models.load` and `models.build`; a name is given without weights.
    """
    if source not in models.MODELS and not source.startswith("torchvision:"):
        network, kept = models.load(source)
        return network, kept["spec"]
    if not weights:
        raise ValueError(f"expected weights=PATH (a state dict) for {source!r}, got none; random ones predict nothing")
    return models.build(source, spec, weights=weights), spec


def similarity_rows(
    model: nn.Module,
    spec: ImageSpec,
    chosen: Iterable[Format | str] = quantization.GRID,
    *,
    measures: Iterable[str] = ("js", "relative_error"),
) -> DataFrame:
    """The similarities of quantized weights to float ones: rows of `quantization.sweep` without its scores.

    Returns:
        One row per format: format, kind, bits, exponent_bits, coded_bits (of all convolution and linear weights), the
        figures of each measure (`similarity.figures`), and the same divided by the network's own at INT_4.
    """
    calibrated = calibration.calibrate(model, None, activations=False)
    reference = similarity.Reference(calibrated.network, spec)
    measures = tuple(measures)

    def figures(format: Format) -> dict[str, float]:
        return reference.figures(post_training.apply(calibrated, format, activations=False), measures)

    at_int4, weights = figures(quantization.INT(4)), cost.weight_count(model)
    rows = []
    for format in runtime.progress([quantization.parse(one) for one in chosen], "formats"):
        own = figures(format)
        rows.append({
            "format": format.name, "kind": format.kind, "bits": format.bits, "exponent_bits": format.exponent_bits,
            "coded_bits": weights * format.bits, **own, **similarity.normalized(own, at_int4),
        })  # fmt: skip
    return DataFrame(rows)
