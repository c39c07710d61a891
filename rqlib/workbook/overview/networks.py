"""Which network each finished run worked on."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas

from rqlib.core import files
from rqlib.training import variants
from rqlib.workbook import results

NATURAL = "natural"


class Network(NamedTuple):
    """What tells networks apart. Two runs that differ in nothing but the seed work on the same network.

    Attributes:
        model, width, images: of the network, and the title of the images that it classifies.
        training: `trained`; empty if it is not known.
        recipe: of the training, with the number of epochs where it is not the recipe's own.
    """

    model: str
    width: float
    images: str
    training: str = ""
    recipe: str = ""

    @property
    def family(self) -> tuple:
        """What networks share that differ only in their training."""
        return self.model, self.width, self.images

    @property
    def is_natural(self) -> bool:
        """Whether it was trained without a defense, as far as it is known."""
        return self.training in ("", NATURAL)

    @property
    def title(self) -> str:
        """``SmallCNN on digits, trained: adversarial at 16/255``."""
        width = "" if self.width == 1 else f" (width {self.width:g})"
        training = "" if self.is_natural else f", trained: {self.training}"
        return f"{self.model}{width} on {self.images}{training}"


@dataclass(frozen=True)
class Source:
    """A finished run and the network that it worked on.

    Attributes:
        record: its `run.json`, with ``folder``.
        network: None if the run is about several networks.
        trained: the row of `01_train` of this network; empty for a network from elsewhere.
        whole: the number of test images of the data set; None if no run of `01_train` says it.
    """

    record: dict
    network: Network | None
    trained: dict = field(default_factory=dict)
    whole: int | None = None

    @property
    def parameters(self) -> dict:
        """The parameters of the run."""
        return self.record["parameters"]

    @property
    def folder(self) -> str:
        """The run's folder, below that of all outputs."""
        return self.record["folder"].relative_to(results.outputs_folder()).as_posix()

    @property
    def report(self) -> str:
        """The address of the run's report, relative to the folder of all outputs; empty if it has none."""
        return quote(f"{self.folder}/report.html") if (self.record["folder"] / "report.html").is_file() else ""

    def table(self, name: str = "rows") -> list[dict]:
        """The rows of a table of the run; empty if it has no such table. A ValueError names a damaged one."""
        return _rows(self.record["folder"] / f"{name}.parquet")

    def images(self, *limits: int | None) -> float:
        """How many test images were scored, at most these many; NaN if nothing says it."""
        return min([limit for limit in (*limits, self.whole) if limit is not None], default=float("nan"))


def trained(variant: str, epsilon_255: float) -> str:
    """How a network was trained, in words: ``natural``, ``adversarial at 16/255``, ``Q+A at 8/255``."""
    name = NATURAL if variant == variants.WORDS[""] else variant
    return name if pandas.isna(epsilon_255) else f"{name} at {epsilon_255:g}/255"


def sources(notebooks: Iterable[str]) -> list[Source]:
    """Every finished run of the notebooks, with its network."""
    trainings = {run["folder"].name: run for run in results.finished("01_train")}
    first = {name: _first(run) for name, run in trainings.items()}
    wholes = {row["images"]: row["test_images"] for row in first.values() if {"images", "test_images"} <= row.keys()}
    return [_source(run, trainings, first, wholes) for name in notebooks for run in results.finished(name)]


def _source(record: dict, trainings: dict, first: dict, wholes: dict) -> Source:
    """The run of a record, with the network of `01_train` that it opened, else with the one that its rows name."""
    own, values = _first(record), record["parameters"]
    is_training = record["notebook"] == "01_train"
    name, seed = (record["folder"].name, None) if is_training else _opened(values, trainings)
    if not own or (record["notebook"] == "03_fit" and not name):
        return Source(record, None)
    images = own.get("images") or first.get(name, {}).get("images") or str(values.get("dataset", ""))
    if name:
        trained_by = trainings[name]["parameters"]
        row = first[name] | {"seed": trained_by.get("seed", 0) if seed is None else seed}
        return Source(record, _of_training(trained_by, images), row, wholes.get(images))
    training = own.get("objective") or own.get("pretrained_for") or ""
    network = Network(str(own.get("model", "network")), float(own.get("width") or 1.0), images, training)
    return Source(record, network, whole=wholes.get(images))


def _opened(values: dict, trainings: dict) -> tuple[str, int | None]:
    """The name of the run of `01_train` that trained the network (else ``""``), and the seed if the path names one."""
    parts = [part for key in ("network", "weights") for part in Path(values.get(key) or "").parts]
    seeds = [int(part.removeprefix("seed")) for part in parts if re.fullmatch(r"seed\d+", part)]
    return next((part for part in parts if part in trainings), ""), next(iter(seeds), None)


def _of_training(values: dict, images: str) -> Network:
    training = trained(variants.variant(values), variants.trained_radius(values))
    epochs = f", {values['epochs']} epochs" if values.get("epochs") else ""
    return Network(values["model"], values.get("width", 1.0), images, training, f"{values.get('recipe', '')}{epochs}")


def _first(record: dict) -> dict:
    """The first row of a run's table."""
    return next(iter(_rows(record["folder"] / "rows.parquet")), {})


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    frame = files.load_table(path)
    return frame.rename_axis("row").reset_index().astype(object).where(lambda all: all.notna(), None).to_dict("records")
