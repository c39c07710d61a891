"""What a parameter that is a text may say, by its name: a name that the library knows, or a file that is there."""

import re
from collections.abc import Callable, Container, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from rqlib import attacks, models, quantization, training
from rqlib.certification import cascade
from rqlib.core import files, runtime
from rqlib.core.vocabulary import ImageSpec, did_you_mean
from rqlib.data import datasets, sources
from rqlib.defenses import activations, gram, quantized_weights
from rqlib.models import conventions
from rqlib.prediction import fits, published, shipped
from rqlib.pruning import algorithms, masks, plans, rivals
from rqlib.quantization import layer_formats, observers, post_training, signal_forms
from rqlib.training import objectives
from rqlib.training.certified_objectives import CERTIFIED
from rqlib.workbook import results

KINDS = "also possible: the path of a checkpoint, torchvision:NAME, package.module:function"

NAMED = re.compile(r"[\w.]+:\w+")
"""``torchvision:NAME`` or ``package.module:function``."""

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def check(name: str, text: str) -> None:
    """Raise a ValueError or FileNotFoundError if a parameter of this name cannot have this value."""
    for known, patterns in CHECKS:
        if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
            known(text)
            return


def _one_of(kind: str, known: Iterable[str], *others: str) -> Callable[[str], None]:
    """A check that a text is a known name, or one of ``others``, which are not listed if it is none."""
    known = list(known)

    def found(text: str) -> None:
        if text not in (*known, *others):
            raise ValueError(did_you_mean(kind, text, known))

    return found


def _unless(plain: Container[str], parse: Callable[[str], object]) -> Callable[[str], None]:
    """A check that a text is one of ``plain``, or that it can be parsed."""
    return lambda text: None if text in plain else parse(text)


def _dataset(text: str) -> None:
    sources.find(text)
    kind, _, path = text.partition(":")
    if kind == "imagefolder":
        sources.find_folder(path, datasets.data_root())


def _model(text: str) -> None:
    if text not in models.MODELS and not NAMED.fullmatch(text):
        raise ValueError(f"{did_you_mean('model', text, models.MODELS)}; or torchvision:NAME, package.module:function")


def _network(text: str) -> None:
    if text in models.MODELS or NAMED.fullmatch(text):
        return
    if text.isidentifier() and not Path(text).exists():
        raise ValueError(f"{did_you_mean('network', text, models.MODELS)}; {KINDS}")
    _file(text, "a checkpoint", "make it: run notebooks/01_train.ipynb")


def _file(text: str, what: str = "a file", remedy: str = "correct the path") -> None:
    if not Path(text).is_file():
        raise FileNotFoundError(f"expected {what} at {text}, found no file; {remedy}")


def _pixels(text: str) -> None:
    channels = text.partition("/")[0].count(",") + 1 if "/" in text else 3
    conventions.with_pixels(ImageSpec(channels, mean=(0.5,) * channels, std=(0.5,) * channels), text)


def _penalty(text: str) -> None:
    for part in text.split("+"):
        _one_of("penalty", ["none", "spectral", *gram.FORMS])(part)


def _device(text: str) -> None:
    if not DEVICE.fullmatch(text):
        raise ValueError(f"expected device auto, cpu, cuda or cuda:N, got {text!r}")


_OBJECTIVES = objectives.OBJECTIVES | CERTIFIED

CHECKS: list[tuple[Callable[[str], object], str]] = [
    (_unless([""], _dataset), "dataset"),
    (_unless([""], _network), "network"),
    (_unless([""], _file), "weights compare"),
    (_file, "others"),
    (_unless([""], published.found), "table pseudo"),
    (_unless([""], lambda text: published.found(files.project_root() / text)), "known"),
    (_model, "model"),
    (_unless([""], _pixels), "pixels"),
    (_unless(["relu"], activations.parse), "activation"),
    (_unless(["none"], quantized_weights.parse), "weight_format"),
    (_penalty, "penalty"),
    (training.recipe, "recipe"),
    (_one_of("objective", _OBJECTIVES), "objective *_objective *_objectives"),
    (quantization.parse, "formats *_formats *_format"),
    (_one_of("granularity", layer_formats.GRANULARITIES, ""), "granularity"),
    (_one_of("ranges", observers.METHODS, ""), "ranges"),
    (_one_of("nonnegative", signal_forms.NONNEGATIVE, ""), "nonnegative"),
    (_one_of("bias", post_training.BIASES), "bias"),
    (_one_of("source", shipped.TABLES), "source"),
    (_one_of("family", fits.FAMILIES), "family"),
    (_one_of("norm", attacks.BALLS), "norm"),
    (_one_of("structure", masks.STRUCTURES), "structure"),
    (_one_of("method", [*algorithms.METHODS, plans.SCRATCH]), "methods"),
    (_one_of("bound", cascade.BOUNDS), "certified_bounds"),
    (_one_of("rival", rivals.RIVALS), "joint_rivals"),
    (_one_of("form", rivals.FORMS), "joint_form"),
    (lambda text: results.matching("01_train", text), "study"),
    (_device, "device"),
    (_one_of("precision", runtime.PRECISIONS), "precision"),
]
"""(check, patterns of names); the first pattern that a name matches counts, and other names may say anything."""
