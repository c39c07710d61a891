"""Import torchvision beside any build of torch.

torchvision's compiled part ``_C`` cannot load beside a CPU-only torch. Then ``import torchvision`` fails, because two
operators are unknown. Declaring their schemas first is enough: what is used here needs no compiled operator.
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
    """The torchvision module with its data sets and networks. Warnings during its import are ignored.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not _loads(_compiled_parts()):
            _declare_operators()
        return importlib.import_module("torchvision")


def _compiled_parts() -> list[Path]:
    """The compiled files ``_C*`` of the installed torchvision."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        raise ModuleNotFoundError(
            "torchvision is not installed; install the version that belongs to this torch "
            f"({torch.__version__}): pip install torchvision"
        )
    folder = Path(spec.submodule_search_locations[0])
    return [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]


def _loads(libraries: list[Path]) -> bool:
    """Whether one of the libraries loads beside this torch. If so, declaring its operators would abort the process."""
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


@functools.cache
def _declare_operators() -> torch.library.Library:
    """Declare the operators that are still unknown. The cache keeps the result: collected, its schemas would vanish."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    return library
