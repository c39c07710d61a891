"""Pictures of the nine networks of the presets `nine` and `nine_small`, from their table and one executed notebook.

python -m rqlib.workbook.nine_pictures DATASET [--mapped DATASET]      writes outputs/reference/figures/nine_*.svg

- nine_curves: the loss of each network in 43 formats against one similarity of its weights, and its own curve;
- nine_maps: where real and generated images of ResNet_18 lie, from the cell of `04_generator` that is tagged ``maps``;
- nine_relative: what quantized networks keep of their accuracy, on generated and on real images.
"""

import argparse
import base64
from pathlib import Path

import numpy
import pandas
import plotly.graph_objects as go
from pandas import DataFrame

from rqlib import prediction
from rqlib.core import files
from rqlib.generator import figures as generator_figures
from rqlib.prediction import figures as prediction_figures
from rqlib.workbook import pictures, results

FEATURE, FAMILY = "js_macs", "rational_3"
MAPPED = "ResNet_18"
POINTS = 30  # of each class and kind of images, so that the file stays small


def of_table(rows: DataFrame) -> dict[str, go.Figure]:
    """Name -> figure, of the rows of `04_generator` of the networks of one data set."""
    losses = prediction.table(rows)
    curves = prediction.fit_each(losses, FEATURE, FAMILY, group="model")[FAMILY]
    kept = prediction.relative(rows)
    kept = kept[kept.attack.isin(["clean", "pgd"])]
    return {
        "nine_curves": prediction_figures.model_curves(losses, FEATURE, curves, group="model"),
        "nine_relative": generator_figures.relative(kept),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ValueError: the table has no rows of this data set.
    """
    parser = argparse.ArgumentParser(prog="python -m rqlib.workbook.nine_pictures", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="as in the column dataset of nine_pseudo.csv, such as digits")
    parser.add_argument("--mapped", metavar="DATASET", help="that of the network in the maps; else the same")
    given = parser.parse_args(arguments)
    dataset = given.dataset
    folder = files.project_root() / pictures.REFERENCE
    rows = pandas.read_csv(folder / "nine_pseudo.csv")
    if dataset not in set(rows.dataset):
        raise ValueError(f"expected one of the data sets {', '.join(rows.dataset.unique())}, got {dataset!r}")
    for name, figure in of_table(rows[rows.dataset == dataset]).items():
        print(pictures.write(figure, folder / "figures" / f"{name}.svg"))
    maps = pictures.of_notebook(_mapped(given.mapped or dataset) / "notebook.ipynb", "maps")
    maps.for_each_trace(lambda trace: trace.update(x=_first(trace.x), y=_first(trace.y)))
    print(pictures.write(maps, folder / "figures/nine_maps.svg"))


def _first(values: dict) -> numpy.ndarray:
    """The first points of a trace, which a notebook holds as base64 text of a type of numpy."""
    return numpy.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])[:POINTS]


def _mapped(dataset: str) -> Path:
    """The folder of the run of `04_generator` on the network whose maps are drawn."""
    runs = [run for run in results.finished("04_generator") if run["parameters"]["dataset"] == dataset]
    found = [run["folder"] for run in runs if run["summary"]["model"] == MAPPED]
    if not found:
        raise FileNotFoundError(f"expected a finished run of 04_generator on {MAPPED}, {dataset}, found none")
    return found[-1]


if __name__ == "__main__":
    main()
