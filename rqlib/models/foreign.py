"""Networks from elsewhere: torchvision's, and the user's own, which are made by a function of a module.

The module may be installed, lie in the working folder (beside the notebook), or in the folder of the weights.
"""

import contextlib
import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from rqlib.core import entry, runtime, torchvision_guard, vocabulary
from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import Normalize, sequence
from rqlib.models.weights import load_weights


def foreign(
    name: str,
    spec: ImageSpec,
    options: Mapping,
    *,
    weights: str | Path | None = None,
    folder: str | Path | None = None,
) -> nn.Module:
    """The network ``torchvision:NAME`` or ``package.module:function``, with the normalization of ``spec`` before it.

    It becomes a classifier (`core.entry.classifier`) after its weights were loaded.

    Args:
        options: of the constructor, beside the number of classes.
        weights: file of its state dict; None: it stays as the constructor makes it.
        folder: where the module is searched, after the working folder; None: where the weights lie.

    Raises:
        ValueError: there is no such network, the function does not take the options, the weights are of another
            network, or the network does not return logits (B, K), K >= 2, for images of ``spec``.
    """
    source, _, function = name.partition(":")
    folder = folder or (Path(weights).parent if weights else Path.cwd())
    folders = list(dict.fromkeys([Path.cwd(), Path(folder).resolve()]))
    with _searching(folders):
        make = _torchvision(function) if source == "torchvision" else _imported(source, function, folders)
        network = called(make, name, {"num_classes": spec.num_classes, **options})
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name}: expected a torch.nn.Module, got {type(network).__name__}")
        model = _classifier(network, spec, weights)
        _check_logits(name, model, spec)
    return model


def called(make: Callable[..., nn.Module], name: str, options: Mapping) -> nn.Module:
    """``make(**options)``, the network of this name.

    Raises:
        ValueError: the constructor does not take these options.
    """
    call = f"{name.rpartition(':')[2]}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ValueError(f"{name} must accept {call}: {error}") from error
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(f"{name}: {call} fails: {error}") from error


def _torchvision(name: str) -> Callable[..., nn.Module]:
    """The constructor of a classification network of torchvision with random weights, without auxiliary outputs."""
    catalog = torchvision_guard.torchvision().models
    known = catalog.list_models(module=catalog)
    if name not in known:
        raise ValueError(vocabulary.did_you_mean("torchvision model", name, known))
    auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return lambda **options: catalog.get_model(name, **{"weights": None, **auxiliary, **options})


@contextlib.contextmanager
def _searching(folders: list[Path]) -> Iterator[None]:
    """Search modules in these folders first, inside the block."""
    before = list(sys.path)
    sys.path[:0] = map(str, folders)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _imported(module: str, function: str, folders: list[Path]) -> Callable:
    """``module.function``; errors say what is missing and where it was searched."""
    try:
        return getattr(_module(module), function)
    except (ImportError, AttributeError) as error:
        where = ", ".join(map(str, folders))
        raise ValueError(
            f"{module}:{function} is not there: {error}; expected package.module:function, "
            f"of an installed package or of a file in {where}"
        ) from error


def _module(name: str) -> ModuleType:
    """Import a module; another one of the same name, imported from elsewhere before, is not taken for it."""
    top = name.partition(".")[0]
    before, found = sys.modules.get(top), importlib.machinery.PathFinder.find_spec(top)
    if before is not None and found is not None and found.origin is not None:
        loaded = getattr(before, "__file__", None)
        if loaded is not None and Path(loaded).resolve() != Path(found.origin).resolve():
            raise ImportError(f"{found.origin} has the name of {loaded}, which is imported already; rename one of them")
    return importlib.import_module(name)


def _classifier(network: nn.Module, spec: ImageSpec, weights: str | Path | None) -> nn.Module:
    """The network behind its normalization; the names in the weights are those of the network as it comes, or after."""
    model = sequence(normalize=Normalize(spec), network=network)
    misfit = None
    if weights is not None:
        try:
            load_weights(model, weights)
        except ValueError as error:
            misfit = error
    model.network = entry.classifier(network)
    if misfit is not None:
        if model.state_dict().keys() == sequence(normalize=model.normalize, network=network).state_dict().keys():
            raise misfit
        load_weights(model, weights)
    return model


def _check_logits(name: str, model: nn.Module, spec: ImageSpec) -> None:
    """Raise unless the network returns (2, K) logits for two black images, K >= 2."""
    if spec.num_classes < 2:
        raise ValueError(f"{name}: expected images of at least 2 classes, got {spec.num_classes}")
    try:
        with runtime.evaluating(model), torch.no_grad():
            logits = model(torch.zeros(2, *spec.shape))
    except Exception as error:
        raise ValueError(f"{name} fails on images of shape {spec.shape}: {error}") from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape in ((2, 1), (2,)):
        raise ValueError(
            f"{name}: expected logits (B, K) of K >= 2 classes, got one logit z per image; put the network into a "
            "module that returns torch.cat([torch.zeros_like(z), z], 1) for z of shape (B, 1)"
        )
    if shape != (2, spec.num_classes):
        raise ValueError(f"{name}: expected logits (2, {spec.num_classes}) for two images, got {shape}")
