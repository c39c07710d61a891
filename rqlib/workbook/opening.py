"""Open the network that a notebook works on, and the others it is compared with."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rqlib import models
from rqlib.data import ImageDataset
from rqlib.workbook import results

MOST_OTHERS = 4
"""As many networks are taken for comparison where none are named."""


@dataclass(frozen=True)
class About:
    """What is known of an opened network.

    Attributes:
        model: its name, as `models.build` takes it.
        width: multiplier of its channel counts.
        parameters: of the training run that it comes from; empty for a network from elsewhere.
        images: title of the images that it works on here.
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
        """The named parameters of its training run, None where it does not say: columns of rows."""
        return {name: self.parameters.get(name) for name in names}


def network(
    checkpoint: str | Path, images: ImageDataset, *, model: str = "", weights: str | Path = ""
) -> tuple[nn.Module, About]:
    """The network of a checkpoint, in eval mode on the active device, and what is known of it.

    Args:
        checkpoint: of `01_train`; empty for that of the latest finished run on these images.
        model: instead of a checkpoint, a name that `models.build` takes; ``weights`` is its state dict.

    Raises:
        FileNotFoundError: no checkpoint there, or no finished run; says how to make one.
        ValueError: as `models.load` and `models.build`.
    """
    if model:
        return models.build(model, images.spec, weights=weights or None), About(model, 1.0, {}, images.title)
    path = Path(checkpoint or results.find("01_train", dataset=images.name) / "checkpoint.pt")
    opened, found = models.load(path)
    return opened, About(found["model"], found["width"], found["parameters"], images.title, path)


def others(about: About, images: ImageDataset, checkpoints: list[str] | None = None) -> dict[str, nn.Module]:
    """Title -> network, for comparison with an opened one.

    Args:
        checkpoints: of these networks; by default those of the first four other finished runs of `01_train` on
            these images.
    """
    paths = checkpoints or _finished(images.name, without=about.path)[:MOST_OTHERS]
    found = [network(path, images) for path in paths]
    return {f"{number}. {other.model}, {other.objective}": opened for number, (opened, other) in enumerate(found, 1)}


def _finished(dataset: str, without: Path | None) -> list[Path]:
    runs = [run for run in results.finished("01_train") if run["parameters"]["dataset"] == dataset]
    paths = [run["folder"] / "checkpoint.pt" for run in runs]
    return [path for path in paths if without is None or path.resolve() != without.resolve()]
