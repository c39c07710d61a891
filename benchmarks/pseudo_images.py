"""What each kind of generated image tells of the accuracy that quantization costs.

    python -m benchmarks.pseudo_images DATASET ROWS TABLE

For every finished run of 04_generator on DATASET, its network is quantized to the formats of up to 8 bits, calibrated
on generated images, and scored on real test images and on several kinds of generated ones. ROWS, a Parquet file,
keeps one row per network and format, and a network that it holds is not measured again. TABLE, a CSV file, has one
row per predictor: how well it is itself the loss (y = x), and how well a nondecreasing curve through it predicts a
network that is left out.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas
import torch
import torch.nn.functional as F
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data, generator, measures, models, prediction, quantization
from rqlib.core import files, machine
from rqlib.data import datasets
from rqlib.prediction.forecasting import Predictor
from rqlib.workbook import results

COUNT, TEST_IMAGES = 250, 1000
FORMATS = [one.name for one in quantization.GRID if one.bits <= 8 and not one.duplicate_of]
FIRST_ORDER, LOGITS = "first-order estimate, weights", "error of the logits, refined"
LOW_PASS = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16


def kinds(run: Path, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The kinds of generated images of one run, by name."""
    trained, adjusted = (generator.load(run / f"{name}.pt") for name in ("trained", "adjusted"))
    plain = generator.sample(trained, COUNT).images
    yield "trained", plain
    yield "trained, low-pass", low_pass(plain)
    yield "adjusted", generator.sample(adjusted, COUNT).images
    yield "boundary", generator.boundary(adjusted, network, COUNT).images
    if generator.batchnorms(network):
        for passes in ([10], [20], [40], [80]):
            yield f"refined, {passes[0]} passes", generator.refine(plain, network, passes=passes)
        mixed = generator.refine(plain, network)
        yield "refined", mixed
        yield "refined, low-pass", low_pass(mixed)
        yield "boundary, refined", generator.refine(generator.boundary(trained, network, COUNT).images, network)


def low_pass(images: Tensor) -> Tensor:
    """Images uint8 after a binomial filter of 3x3 pixels."""
    pixels = F.pad(datasets.to_pixels(images), (1, 1, 1, 1), mode="replicate")
    channels = images.shape[1]
    return datasets.to_uint8(F.conv2d(pixels, LOW_PASS.expand(channels, 1, 3, 3), groups=channels))


def rows(run: Path, parameters: dict, images: data.ImageDataset) -> DataFrame:
    """One row per format: the loss on test images, and what each kind of generated image says of it."""
    network, about = models.load(parameters["network"])
    calibration = generator.sample(generator.load(run / "trained.pt"), 1000).images

    def sweep(split: data.Split) -> DataFrame:
        return quantization.sweep(network, FORMATS, calibration, *split, measures=[]).set_index("format")

    found = sweep(images.test.take(TEST_IMAGES))[["accuracy_loss"]]
    for name, made in kinds(run, network):
        seen = measures.logits(network, made, torch.zeros(len(made), dtype=torch.long)).argmax(1)
        swept = sweep(data.Split(made, seen))
        found[name] = swept.accuracy_loss
        if name == "refined":
            found[LOGITS] = swept.logit_error
    some = generator.sample(generator.load(run / "trained.pt"), 100).images
    estimated = quantization.gradient_sensitivity(network, FORMATS, some)
    found[FIRST_ORDER] = estimated.groupby("format").logit_error.sum()
    return found.reset_index().assign(network=run.name, model=about["model"])


def scores(frame: DataFrame) -> DataFrame:
    """One row per predictor, the best first."""
    names = [name for name in frame if name not in ("format", "network", "model", "accuracy_loss")]
    lines = []
    for name in names:
        known = frame.dropna(subset=[name])
        itself = prediction.scores(known.accuracy_loss, known[name])
        line = {
            "predictor": name, "networks": known.network.nunique(), "rows": len(known),
            "identity_r2": itself["r2"], "identity_mae": itself["mae"],
        }  # fmt: skip
        if known.network.nunique() > 1:
            left_out = prediction.leaderboard(known, [_isotonic(name)], group="network").board.iloc[0]
            line |= {"held_out_r2": left_out.held_out_r2, "held_out_mae": left_out.held_out_mae}
        lines.append(line)
    table = DataFrame(lines).sort_values("identity_r2", ascending=False)
    table.loc[table.predictor.isin([FIRST_ORDER, LOGITS]), ["identity_r2", "identity_mae"]] = None  # no losses
    return table


def _isotonic(name: str) -> Predictor:
    return Predictor((name,), "isotonic", name)


def main() -> None:
    """The command line."""
    dataset, kept, table = sys.argv[1:]
    images, kept = data.load(dataset), Path(kept)
    frame = files.load_table(kept) if kept.exists() else DataFrame({"network": []})
    for run in results.finished("04_generator"):
        if run["parameters"]["dataset"] == dataset and run["folder"].name not in set(frame.network):
            frame = pandas.concat([frame, rows(run["folder"], run["parameters"], images)], ignore_index=True)
            files.save_table(kept, frame)
            print(scores(frame).round(3).to_string(index=False), flush=True)
    found = machine.describe()
    where = f"{found['processor']}, {found['cores']} cores, torch {found['torch']}"
    command = f"python -m benchmarks.pseudo_images {dataset} ROWS TABLE"
    scores(frame).round(5).assign(images=images.title, machine=where, command=command).to_csv(table, index=False)


if __name__ == "__main__":
    main()
