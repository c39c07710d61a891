"""torchvision, imported safely beside any build of torch.

torchvision's wheel has a compiled part ``_C``. Beside a CPU-only torch it cannot load, and then
``import torchvision`` fails, because two operators that it wants to describe are unknown. Declaring
their schemas is enough: data sets, transforms and classification networks need no compiled operator.
"""

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def torchvision() -> ModuleType:
    """The torchvision module with its data sets and networks; what it warns of while importing is not an error.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not _loads(_compiled_parts()):
            _declare(_SCHEMAS)
        return importlib.import_module("torchvision")


def _compiled_parts() -> list[Path]:
    """The files ``_C*`` of the installed torchvision."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        raise ModuleNotFoundError(
            "torchvision is not installed; install the version that belongs to this torch "
            f"({torch.__version__}): pip install torchvision"
        )
    folder = Path(spec.submodule_search_locations[0])
    return [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]


def _loads(libraries: list[Path]) -> bool:
    """Whether one of the libraries loads beside this torch; declaring its operators again would abort the process."""
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def _declare(schemas: tuple[str, ...]) -> None:
    """Declare the operators that are still unknown, for the life of the process."""
    for schema in schemas:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            _declarations().define(schema)


@functools.cache
def _declarations() -> torch.library.Library:
    """Kept by the cache: a collected Library takes its schemas with it."""
    return torch.library.Library("torchvision", "FRAGMENT")
