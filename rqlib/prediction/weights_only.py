"""What is known of a network without any image: how far each format moves its weights, and how many bits it takes."""

from collections.abc import Iterable

from pandas import DataFrame
from torch import nn

from rqlib import quantization
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.prediction.anatomy import plain_features
from rqlib.quantization import Format, calibration, post_training, similarity

MEASURES = tuple(similarity.MEASURES)


def similarity_rows(
    model: nn.Module,
    spec: ImageSpec,
    chosen: Iterable[Format | str] = quantization.GRID,
    *,
    measures: Iterable[str] = MEASURES,
    granularity: str = "tensor",
    ranges: str = "mse",
    **others: str,
) -> DataFrame:
    """The similarities of quantized weights to float ones: rows of `quantization.sweep` without its scores.

    Args:
        spec: the images that the network takes; their height and width give the MACs.
        granularity, ranges: how the weights' scales are chosen, as in `quantization.ptq`.
        others: the rest of a setting (`prediction.setting`): nonnegative, bias. They concern signals and biases, so
            they change nothing here, and stand in the rows.

    Returns:
        One row per format: format, kind, bits, exponent_bits, coded_bits (of all convolution and linear weights), the
        figures of each measure (`similarity.figures`), the same divided by the network's own at INT_4, the setting,
        and the `plain_features` of the network.
    """
    calibrated = calibration.calibrate(model, None, ranges=ranges, activations=False)
    reference = similarity.Reference(calibrated.network, spec)
    measures = tuple(measures)

    def figures(format: Format) -> dict[str, float]:
        quantized = post_training.apply(calibrated, format, granularity=granularity, activations=False)
        return reference.figures(quantized, measures)

    at_int4, weights = figures(quantization.INT(4)), cost.weight_count(model)
    rows = []
    for format in runtime.progress([quantization.parse(one) for one in chosen], "formats"):
        own = figures(format)
        rows.append({
            "format": format.name, "kind": format.kind, "bits": format.bits, "exponent_bits": format.exponent_bits,
            "coded_bits": weights * format.bits, **own, **similarity.normalized(own, at_int4),
        })  # fmt: skip
    setting = {"granularity": granularity, "ranges": ranges, **others}
    return DataFrame(rows).assign(**setting, **plain_features(model))
