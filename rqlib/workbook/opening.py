"""Open the network that a notebook works on, and the others it is compared with."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rqlib import models
from rqlib.data import ImageDataset
from rqlib.workbook import results

MOST_OTHERS = 4
"""So many networks are compared with if none are named."""


@dataclass(frozen=True)
class About:
    """What is known of an opened network.

    Attributes:
        model: name, as `models.build` takes it.
        width: multiplier of the channel counts.
        parameters: of the run of `01_train` that trained it; empty for a network from elsewhere.
        images: title of the images that the notebook gives it.
        path: its checkpoint; None for a network from elsewhere.
    """

    model: str
    width: float
    parameters: dict
    images: str
    path: Path | None = None

    @property
    def objective(self) -> str:
        """What it was trained for."""
        return self.parameters.get("objective", "natural")

    @property
    def title(self) -> str:
        """For figures: ``ResNet_18 on digits``."""
        return f"{self.model} on {self.images}"

    def trained(self, *names: str) -> dict:
        """The named parameters of its training run, as columns of a row; None for one that the run does not have."""
        return {name: self.parameters.get(name) for name in names}


def network(
    checkpoint: str | Path, images: ImageDataset, *, model: str = "", weights: str | Path = ""
) -> tuple[nn.Module, About]:
    """The network of a checkpoint, in eval mode on the active device, and what is known of it.

    Args:
        checkpoint: path of a checkpoint of `01_train`; empty for that of the latest finished run on these images.
        model: instead of a checkpoint, a name that `models.build` takes.
        weights: with ``model``, path of its state dict; empty for random weights.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no finished run; the message says how to make one.
        ValueError: as `models.load` and `models.build`.
    """
    if model:
        return models.build(model, images.spec, weights=weights or None), About(model, 1.0, {}, images.title)
    path = Path(checkpoint or results.find("01_train", dataset=images.name) / "checkpoint.pt")
    opened, found = models.load(path)
    return opened, About(found["model"], found["width"], found["parameters"], images.title, path)


def others(about: About, images: ImageDataset, checkpoints: list[str] | None = None) -> dict[str, nn.Module]:
    """Networks to compare an opened one with: title -> network.

    Args:
        checkpoints: paths of their checkpoints; by default those of the first four finished runs of `01_train` on
            these images, without the opened one.
    """
    paths = checkpoints or _finished(images.name, without=about.path)[:MOST_OTHERS]
    found = [network(path, images) for path in paths]
    return {f"{number}. {other.model}, {other.objective}": opened for number, (opened, other) in enumerate(found, 1)}


def _finished(dataset: str, without: Path | None) -> list[Path]:
    runs = [run for run in results.finished("01_train") if run["parameters"]["dataset"] == dataset]
    paths = [run["folder"] / "checkpoint.pt" for run in runs]
    return [path for path in paths if without is None or path.resolve() != without.resolve()]
