"""What repairs without training win: the same network in one format, plain and repaired."""

import pandas
from torch import Tensor, nn

from rqlib import measures
from rqlib.core import runtime
from rqlib.quantization import post_training
from rqlib.quantization.formats import Format

SETS = (
    (),
    ("equalization",),
    ("bias_correction_batchnorm",),
    ("bias_correction",),
    ("equalization", "bias_correction"),
    ("equalization_without_relu6", "bias_correction"),
)
"""What `score_repairs` tries, as `quantization.ptq` takes it."""


def score_repairs(
    model: nn.Module,
    format: Format | str,
    calibration_images: Tensor,
    images: Tensor,
    labels: Tensor,
    **options,
) -> pandas.DataFrame:
    """The accuracy of a network in one format without and with repairs, in float32: one row per set of `SETS`.

    The last set is left out for a network without ReLU6, for which it says the same as the one before.

    Args:
        images, labels: what is scored, uint8 (N, C, H, W) and int64 (N,).
        options: further options of `quantization.ptq`.

    Returns:
        A table with the columns repairs, accuracy and note: why a repair is not possible; its accuracy is NaN.
    """
    has_relu6 = any(isinstance(module, nn.ReLU6) for module in model.modules())
    rows = []
    with runtime.exact():
        for chosen in SETS if has_relu6 else SETS[:-1]:
            accuracy, note = float("nan"), ""
            try:
                quantized = post_training.ptq(model, format, calibration_images, repairs=chosen, **options)
                accuracy = measures.accuracy(quantized, images, labels)
            except ValueError as error:
                if not chosen:
                    raise
                note = str(error)
            rows.append({"repairs": " + ".join(chosen) or "none", "accuracy": accuracy, "note": note})
    return pandas.DataFrame(rows)
