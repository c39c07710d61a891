"""A network that was derived from another one, folded, traced or shrunk, must compute what the other computes."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from rqlib.core import layers, parametrizations, runtime

TOLERANCE = 1e-4
"""Largest relative error ``||z' - z|| / ||z||`` of the logits z' of a derived network in float."""


class NotEqual(ValueError):
    """A derived network computes something else than the one that it comes from."""


def traced(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """The graph of a network as a network that shares its layers, checked on images (`check`).

    Raises:
        NotEqual: what torch.fx recorded is not what the network computes.
        ValueError: torch.fx cannot trace the network.
    """
    graph = fx.GraphModule(model, layers.trace(model), type(model).__name__)
    check(model, graph, images, what="tracing (torch.fx)")
    return graph


def folded(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """The graph of a network with BatchNorm folded (`layers.fold_batchnorm`), checked on images (`check`).

    Parametrized weights become plain ones.

    Raises:
        NotEqual: folded and recorded by torch.fx, the network computes something else.
        ValueError: torch.fx cannot trace the network.
    """
    parametrized = any(map(parametrize.is_parametrized, model.modules()))
    plain = layers.fold_batchnorm(parametrizations.bake(model) if parametrized else model)
    graph = fx.GraphModule(plain, layers.trace(plain), type(model).__name__)
    check(model, graph, images, what="folding BatchNorm")
    return graph


def check(original: nn.Module, derived: nn.Module, images: Tensor, *, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise unless both networks compute the same logits, in eval mode, at two batch sizes, in their own precision.

    If they do not, but copies in float64 do, the difference is rounding, and nothing is raised.
    It costs two forward passes of the images, and two of two images (of one, if there are two). Random numbers that
    the networks draw are the same for both, and torch's random state is put back.

    Args:
        images: float (B, C, H, W) in [0, 1], on the device of the networks.
        what: made the derived network of the original, for the message: ``folding BatchNorm``.
        tolerance: largest relative error ``||z' - z|| / ||z||`` of the logits.

    Raises:
        NotEqual: says the relative error, the batch size, and the first layer whose output differs.
    """
    other = images[:2] if len(images) > 2 else images[:1] if len(images) == 2 else torch.cat([images, images])
    for x in (images, other):
        error = _relative_error(_run(original, x), _run(derived, x))
        if not error <= tolerance:  # deep networks may multiply the rounding of float32
            error = min(error, _error_in_float64(original, derived, x))
        if not error <= tolerance:
            raise NotEqual(
                f"{what} changes what {type(original).__name__} computes: the logits of {len(x)} images differ by "
                f"{error:.2g} of their length, expected at most {tolerance:g}{_where(original, derived, x, tolerance)}"
            )


@torch.no_grad()
def _run(model: nn.Module, x: Tensor) -> Tensor:
    """The logits in eval mode, without autocast and TF32, with random numbers that start from 0."""
    devices = [x.device] if x.is_cuda else []
    exact = torch.autocast(x.device.type, enabled=False)
    with runtime.evaluating(model), exact, runtime.tf32(False), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return model(x.clone())


def _error_in_float64(original: nn.Module, derived: nn.Module, x: Tensor) -> float:
    """The relative error of both networks in float64; infinite if they compute in float32 only."""
    try:
        one, other = (_run(parametrizations.copied(model).double(), x.double()) for model in (original, derived))
    except (RuntimeError, TypeError):
        return torch.inf
    return _relative_error(one, other)


def _relative_error(one: Tensor, other: Tensor) -> float:
    """``||other - one|| / ||one||``; infinite if the shapes differ, or if other values are not finite."""
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return torch.inf
    one, other = (values.double().nan_to_num(0, 0, 0) for values in (one, other))
    return ((other - one).norm() / one.norm().clamp(min=1e-12)).item()


def _where(original: nn.Module, derived: nn.Module, x: Tensor, tolerance: float) -> str:
    """Which layer is the first whose output differs, as the end of a sentence.

    Layers with other weights or another shape in the derived network are passed over: they were changed on purpose.
    """
    alike = list(_alike(original, derived))
    ours, theirs = ({}, {})
    for model, found in ((original, ours), (derived, theirs)):
        with layers.watching(model, alike, lambda name, _, output, found=found: found.setdefault(name, output)):
            _run(model, x)
    pairs = [(name, output, theirs.get(name)) for name, output in ours.items()]
    compared = [(name, one, two) for name, one, two in pairs if _comparable(one, two)]
    for name, one, two in compared:
        if _relative_error(one, two) > tolerance:
            return f"; the first layer whose output differs is {name}"
    return f"; all layers up to {compared[-1][0]} agree, what follows differs" if compared else ""


def _comparable(one: object, two: object) -> bool:
    return isinstance(one, Tensor) and isinstance(two, Tensor) and one.shape == two.shape


def _alike(original: nn.Module, derived: nn.Module) -> Iterator[str]:
    """Names of the layers without parts in both networks that have the same tensors, or none."""
    others = dict(derived.named_modules(remove_duplicate=False))
    for name, module in original.named_modules():
        other = others.get(name)
        if other is None or any(module.children()) or not name:
            continue
        mine, its = module.state_dict(), other.state_dict()
        same = mine.keys() == its.keys() and all(torch.equal(value, its[key]) for key, value in mine.items())
        if same or not its:
            yield name
