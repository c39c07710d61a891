"""The whole chain without data: quantize on generated images, and say beforehand what it will cost.

The loss of accuracy on generated images is itself a prediction. Networks measured before turn it into a better
one, with an interval: the predictors that do best on them, each left out in turn, are fitted to all of them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data, prediction, quantization
from rqlib.prediction import features, forecasting
from rqlib.prediction.features import GENERATORS, TARGET
from rqlib.quantization import Format

TRUTH = ("accuracy", "float_accuracy", TARGET, "agreement", "logit_error", "seconds")
FEWEST = 3  # other networks: fewer give no interval


def losses(
    model: nn.Module,
    formats: Iterable[Format | str],
    calibration_images: Tensor,
    pseudo: Mapping[str, data.Split],
    real: data.Split | None = None,
    *,
    folder: str | Path | None = None,
    **options,
) -> DataFrame:
    """Rows of `quantization.sweep`, with the loss on every set of generated images; the truth where it can be had.

    Args:
        calibration_images: generated, for a chain without data.
        pseudo: ``boundary``, ``trained``, ``adjusted``, those that there are -> images and labels.
        real: labeled images for the truth; None leaves its columns out.
        folder: of the sweeps' checkpoints.
        options: as `quantization.sweep`.
    """
    formats = list(formats)

    def sweep(name: str, images: data.Split, **more) -> DataFrame:
        path = None if folder is None else Path(folder) / f"{name}.pt"
        return quantization.sweep(model, formats, calibration_images, *images, checkpoint=path, **options, **more)

    swept = {name: sweep(name, images) for name, images in pseudo.items()}
    rows = sweep("real", real) if real else next(iter(swept.values())).drop(columns=[*TRUTH])
    return rows.assign(**{GENERATORS[name]: found[TARGET] for name, found in swept.items()})


def forecast(rows: DataFrame, others: DataFrame | None = None, *, level: float = 0.9) -> DataFrame:
    """Predicted loss of every format, as `forecasting.predict`: columns format, predicted, lower, upper, ...

    Args:
        rows: of one network, from `losses`, with the column ``model``.
        others: rows of networks measured before (`features.table`); those of the same name are left out. With
            fewer than three networks the loss on pseudo-data (the first that there is) is the prediction, and its
            interval is unknown.

    Raises:
        ValueError: the rows hold no loss on generated images.
    """
    rows = features.table(rows)
    first = next((name for name in GENERATORS.values() if name in rows), None)
    if first is None:
        raise ValueError(f"expected a loss on generated images, one of {', '.join(GENERATORS.values())} (`losses`)")
    others = DataFrame({"model": []}) if others is None else others[~others.model.isin(rows.model)]
    if others.model.nunique() >= FEWEST:
        best = prediction.leaderboard(others, level=level).best(rows.columns)
        return forecasting.predict(rows, forecasting.fit(others, best), level=level)
    print(f"{others.model.nunique()} other networks, fewer than {FEWEST}: predicted: {features.label(first)}")
    kept = [name for name in ("format", "bits", "coded_bits", TARGET) if name in rows]
    found = rows[kept].assign(storage=rows.bits / 32, predicted=rows[first], lower=float("nan"), upper=float("nan"))
    return found.assign(outside="").sort_values(["bits", "predicted"], kind="stable", ignore_index=True)
