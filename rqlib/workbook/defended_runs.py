"""The trained networks of many runs of `01_train`, by a pattern of their folders: for a study of defenses."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rqlib import models
from rqlib.core import files
from rqlib.data import ImageDataset
from rqlib.models import checkpoints
from rqlib.robustness.defense_study import Trained
from rqlib.training import variants
from rqlib.workbook import opening, results


def defended(patterns: Sequence[str], images: ImageDataset) -> list[Trained]:
    """Every network of the finished runs of `01_train` whose folders match, once, in the order variant, radius, seed.

    Args:
        patterns: of the names of folders, with ``*`` for anything; none of them for no networks.
        images: those that the networks are compared on.

    Raises:
        FileNotFoundError: a pattern matches nothing; the message says where was looked.
        ValueError: a network was trained on other images, or its checkpoint is damaged.
    """
    folders = dict.fromkeys(folder for pattern in patterns for folder in results.matching("01_train", pattern))
    paths = [path for folder in folders for path in (folder / "checkpoint.pt", *folder.glob("seed*/checkpoint.pt"))]
    return sorted(
        (_trained(path, images) for path in paths), key=lambda one: (one.variant, f"{one.epsilon_255:8.2f}", one.seed)
    )


def _trained(path: Path, images: ImageDataset) -> Trained:
    """What a checkpoint says of its network; it is opened later, when it is needed."""
    found = checkpoints.record(path)
    opening.check_images(path, found, images)
    known, log = found["parameters"], path.with_name("history.parquet")
    return Trained(
        variant=variants.variant(known),
        seed=known["seed"],
        epsilon_255=variants.trained_radius(known),
        open=partial(_opened, path),
        history=partial(files.load_table, log) if log.is_file() else None,
    )


def _opened(path: Path):
    """The network of a checkpoint; the module of a user's own network is not imported, because nobody has named it."""
    model, _ = models.load(path)
    return model
