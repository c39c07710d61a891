"""The trained networks of many runs of `01_train`, by a pattern of their folders: for a study of defenses."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas

from rqlib import models
from rqlib.models import checkpoints
from rqlib.robustness.defense_study import Trained
from rqlib.training import variants
from rqlib.workbook import results


def defended(patterns: Sequence[str]) -> list[Trained]:
    """Every network of the finished runs of `01_train` whose folders match, once, in the order variant, radius, seed.

    Args:
        patterns: of the names of folders, with ``*`` for anything; none of them for no networks.

    Raises:
        FileNotFoundError: a pattern matches nothing; the message says where was looked.
    """
    finished = results.finished("01_train") if patterns else []
    folders = dict.fromkeys(folder for pattern in patterns for folder in _matching(pattern, finished))
    paths = [path for folder in folders for path in (folder / "checkpoint.pt", *folder.glob("seed*/checkpoint.pt"))]
    return sorted(map(_trained, paths), key=lambda one: (one.variant, f"{one.epsilon_255:8.2f}", one.seed))


def _matching(pattern: str, finished: list[dict]) -> list[Path]:
    found = [run["folder"] for run in finished if run["folder"].match(pattern)]
    if not found:
        raise FileNotFoundError(
            f"study={pattern!r}: expected finished runs with such names in {results.outputs_folder() / '01_train'}, "
            "found none; make them, for example: make workbook PRESET=digits_defenses"
        )
    return found


def _trained(path: Path) -> Trained:
    """What a checkpoint says of its network; it is opened later, when it is needed."""
    found = checkpoints.record(path)
    known, log = found["parameters"], path.with_name("history.parquet")
    return Trained(
        variant=variants.variant(known),
        seed=known["seed"],
        epsilon_255=variants.trained_radius(known),
        open=partial(_opened, path),
        history=partial(pandas.read_parquet, log) if log.is_file() else None,
    )


def _opened(path: Path):
    """The network of a checkpoint; the module of a user's own network is not imported, because nobody has named it."""
    model, _ = models.load(path)
    return model
