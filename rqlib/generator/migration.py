"""The whole chain without data: quantize on generated images, and say beforehand what it will cost.

The loss of accuracy on generated images is itself a prediction of the loss on real ones. Networks that were measured
before turn it into a better one, with an interval: of all predictors, those that do best on the measured networks,
each network left out in turn, are fitted to all of them.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data, prediction, quantization
from rqlib.core import files
from rqlib.prediction.features import TARGET, label
from rqlib.prediction.published import FLOAT, GENERATORS, NETWORK, SETTING
from rqlib.prediction.settings import TODAY, described, filled
from rqlib.quantization import Format

TRUTH = ("accuracy", "float_accuracy", TARGET, "agreement", "logit_error", "seconds")
FEWEST = 3  # other networks; fewer give no interval


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
    """Rows of `quantization.sweep`, one per format, with the loss of accuracy on every set of generated images.

    Each row also says in which setting it was quantized (granularity, ranges, nonnegative, bias), and what the network
    is built of (`prediction.plain_features`). All sets are swept together: ``seconds`` is the time of all of them.

    Args:
        formats: empty for all of `quantization.GRID`.
        calibration_images: generated ones, for a chain without data.
        pseudo: names of sets -> images and labels. Names: refined, boundary, trained, adjusted.
        real: labeled real images, which the columns of the truth (accuracy, accuracy_loss, ...) are measured on;
            None leaves these columns out.
        folder: of the checkpoint of the sweep; an interrupted call goes on from there.
        options: as in `quantization.sweep`.

    Raises:
        ValueError: as `quantization.sweep`; an unknown generator.
    """
    formats = list(formats) or list(quantization.GRID)
    if unknown := set(pseudo) - set(GENERATORS):
        raise ValueError(f"expected generators {', '.join(GENERATORS)}, got {', '.join(sorted(unknown))}")

    sets = {name: pseudo[name] for name in GENERATORS if name in pseudo} | ({"real": real} if real else {})
    path = None if folder is None else Path(folder) / "sweeps.pt"
    swept = quantization.sweep_sets(model, formats, calibration_images, sets, checkpoint=path, **options)
    rows = swept.pop("real") if real else next(iter(swept.values())).drop(columns=[*TRUTH])
    setting = {name: options.get(name, usual) for name, usual in TODAY.items()}
    rows = rows.assign(**setting, **prediction.plain_features(model))
    return rows.assign(**{GENERATORS[name]: found[TARGET] for name, found in swept.items()})


def calibrations(
    model: nn.Module,
    images: Mapping[str, Tensor],
    real: data.Split,
    *,
    formats: Iterable[Format | str] = ("INT_8", "FLOAT_8_E4"),
    **options,
) -> DataFrame:
    """How good calibration images are: the accuracy on real images of a network that was calibrated on each set.

    One row per format: format, the accuracy for every name of ``images``, float (accuracy of the float network). The
    options (granularity, ranges, nonnegative, bias) are those of `quantization.sweep`.
    """
    formats = list(formats)
    accuracies = DataFrame()
    for name, some in images.items():
        rows = quantization.sweep(model, formats, some, *real, measures=[], **options).set_index("format")
        accuracies[name] = rows.accuracy
    return accuracies.assign(float=rows.float_accuracy).reset_index()


def measured_before(path: str) -> DataFrame | None:
    """The table of networks that were measured before; None for an empty path.

    The path is that of a CSV file in the published form, relative to the workbook's folder. Errors are those of
    `prediction.read_table` and `prediction.table`.
    """
    return prediction.table(prediction.read_table(files.project_root() / path)) if path else None


def migrate(rows: DataFrame, others: DataFrame | None = None, *, level: float = 0.9) -> DataFrame:
    """The predicted loss of every format on real images, as `prediction.forecast` returns it.

    Args:
        rows: of one network, from `losses`, with the column ``model``.
        others: rows of networks measured before (`measured_before`); rows of the same network are left out, and so
            are those of another setting. With fewer than three networks the loss on generated images is the
            prediction, of the first set of `published.GENERATORS` that was measured, and the interval is unknown.
        level: of the interval; a few networks reach a lower one (`prediction.forecast`).

    Returns:
        One row per format: format, predicted, lower, upper, level (the one that the intervals are made for), ...

    Raises:
        ValueError: the rows hold no loss on generated images.
    """
    rows = prediction.table(rows)
    first = next((name for name in GENERATORS.values() if name in rows), None)
    if first is None:
        raise ValueError(f"expected a loss on generated images, one of {', '.join(GENERATORS.values())} (`losses`)")
    others = DataFrame({"model": []}) if others is None else _like(rows, others[~others.model.isin(rows.model)])
    if others.model.nunique() >= FEWEST:
        trial = prediction.leave_out(others, columns=rows.columns[rows.notna().any()])
        found = prediction.forecast(trial, others, rows, level=level)
        return found.table.assign(level=found.level)
    print(f"{others.model.nunique()} other networks, fewer than {FEWEST}: predicted: {label(first)}")
    columns = [name for name in ("format", "bits", "coded_bits", TARGET) if name in rows]
    found = rows[columns].assign(storage=rows.bits / 32, predicted=rows[first], lower=math.nan, upper=math.nan)
    return found.assign(outside="", level=math.nan).sort_values(["bits", "predicted"], kind="stable", ignore_index=True)


def _like(rows: DataFrame, others: DataFrame) -> DataFrame:
    """The other networks that were measured in the same setting as these rows; prints how many were not."""
    setting = filled(rows)[[*SETTING]].iloc[0]
    same = (filled(others)[[*SETTING]] == setting).all(axis=1)
    if not same.all():
        print(f"{(~same).sum()} of {len(same)} known rows left out: not measured with {described(setting)}")
    return others[same]


def score(forecast: DataFrame) -> dict[str, float]:
    """How far a forecast is from the measured losses: r2, rmse and mae, as `prediction.scores`."""
    return prediction.scores(forecast[TARGET], forecast.predicted)


def rows(losses: DataFrame, attacked: DataFrame) -> DataFrame:
    """All figures of one network: losses of accuracy joined with accuracies under attack, one row per format.

    The float network (FP32) comes first, then the formats of ``losses``, then those that were only attacked. What is
    the same for all formats (dataset, model, width, seed, the setting) stands in every row.

    The losses are those of `losses`, the accuracies under attack those of `robustness.on_sets`.
    """
    order = [FLOAT, *dict.fromkeys([*losses.format, *attacked.format[1:]])]
    joined = attacked.merge(losses, how="outer", on="format").set_index("format").loc[order].reset_index()
    known = [name for name in (*NETWORK, *SETTING) if name in losses and losses[name].notna().any()]
    return joined.fillna({name: losses[name].iloc[0] for name in known})
