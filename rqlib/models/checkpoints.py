"""Checkpoints: plain weights with the model's name and `ImageSpec`. Loading one executes no code of the file.

It holds a network that `models.build` makes, or one that was changed afterwards in a way that the file names and
`CHANGES` can repeat. Any other network is refused already when it is saved.
"""

import dataclasses
import json
import operator
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import files, limits, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.models import catalog, weights

HEADER = ("model", "spec", "width", "options", "classes", "parameters", "metadata")
"""What every file says of its network."""
_KEYS = (*HEADER, "state")  # of a checkpoint

CHANGES: dict[str, Callable[[nn.Module, dict], nn.Module]] = {}
"""Name -> (network of `models.build`, settings) -> changed network; the chapter that changes networks enters it."""


def save(path: str | Path, model: nn.Module, name: str, spec: ImageSpec, **options) -> Path:
    """Write the checkpoint of a network that ``models.build`` makes, atomically. Options and errors as `content`."""
    files.save_tensors(path, content(model, name, spec, **options))
    return Path(path)


def content(
    model: nn.Module,
    name: str,
    spec: ImageSpec,
    *,
    width: float = 1.0,
    options: dict | None = None,
    classes: tuple[str, ...] = (),
    parameters: dict | None = None,
    changes: dict[str, dict] | None = None,
    **metadata,
) -> dict:
    """What a checkpoint holds, for a network that ``models.build(name, spec, width=width, options=options)`` makes.

    Args:
        classes: names of the classes, in the order of the logits.
        parameters: of the run that trained the network, as plain values.
        changes: name in `CHANGES` -> its settings, as plain values: how the network was changed after it was made.
        metadata: more plain values to keep, for example ``clean_accuracy=0.97``.

    Raises:
        ValueError: weights are parametrized, or the network is no longer the plain one of that name.
    """
    found = {
        "model": name,
        "spec": dataclasses.asdict(spec),
        "width": width,
        "options": options or {},
        "classes": list(classes),
        "parameters": parameters or {},
        "changes": changes or {},
        "metadata": metadata,
    }
    found = json.loads(json.dumps(found, default=operator.methodcaller("item")))  # NumPy's numbers become plain
    _check_plain(model, _build(found))
    return found | {"state": _on_cpu(model)}


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """The state on the CPU; a parameter that several layers share is one tensor there, too."""
    state = model.state_dict(keep_vars=True)  # the parameters themselves: layers share one, not only its address
    copies = {value: value.detach().cpu() for value in state.values()}
    return {key: copies[value] for key, value in state.items()}


def load(path: str | Path, *, expected: str | None = None) -> tuple[nn.Module, dict]:
    """The network of a checkpoint, in eval mode on the active device, and a dict of what else the file says.

    The dict holds model, spec (an `ImageSpec`), width, options, classes, parameters, changes, metadata.

    Args:
        expected: the model's name, if the caller knows it. A checkpoint of ``package.module:function`` is
            loaded only if it is expected by that name, because loading imports the module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, foreign, holds code, or is of another network. Nothing is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a checkpoint at {path}, found no file; make it: run notebooks/01_train.ipynb"
        )
    content = files.load_tensors(path)
    check_keys(path, content, _KEYS)
    check_name(path, content, expected)
    state, times = content["state"], limits.MOST_REBUILT if content.get("changes") else 1
    try:
        most = times * limits.bytes_of(state)
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(f"{path}: expected a state of dense tensors by name, got {error}") from error
    return rebuilt(path, content, lambda _: state, most)


def record(path: str | Path) -> dict | None:
    """What a checkpoint says beside its weights, as `load` returns it; None if the file is another file of weights.

    Raises:
        FileNotFoundError, ValueError: as `weights.read`.
    """
    content = weights.read(path)
    return None if any(key not in content for key in _KEYS) else _info(content)


def rebuilt(
    path: str | Path, content: dict, read: Callable[[dict[str, Tensor]], dict[str, Tensor]], most: int
) -> tuple[nn.Module, dict]:
    """The result of `load`, from what a file says of its network (`HEADER`).

    Args:
        path: only named in errors.
        read: (state of the new network) -> its state in the file.
        most: bytes that the network may take before it is changed; a larger one is refused and not made.
    """
    try:
        _check_size(path, content, most)
        model = _build(content, Path(path).parent)
        model.load_state_dict(read(model.state_dict()))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: its weights do not make a {content['model']!r}: {reason}") from error
    return runtime.active().place(model.eval()), _info(content)


def changed(model: nn.Module, changes: dict[str, dict]) -> nn.Module:
    """A network of `models.build` after the changes that a checkpoint names; their weights are not yet loaded.

    Raises:
        ValueError: a change that is not known; settings that do not fit the network.
    """
    for name, settings in changes.items():
        if name not in CHANGES:
            raise ValueError(
                f"expected a change {' | '.join(CHANGES)}, got {name!r}; import the chapter that makes it first"
            )
        model = CHANGES[name](model, settings)
    return model


def _info(content: dict) -> dict:
    found = {key: content[key] for key in HEADER}
    return found | {"spec": ImageSpec(**content["spec"]), "changes": content.get("changes", {})}


def check_keys(path: str | Path, content: dict, keys: Iterable[str]) -> None:
    """Raise a ValueError unless a file says all of this."""
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(
            f"{path}: expected a checkpoint with {', '.join(keys)}, found no {', '.join(missing)}; "
            "a plain state dict is loaded by models.build(name, spec, weights=path), "
            f"in a notebook by network=NAME, weights={str(path)!r}"
        )


def check_name(path: str | Path, content: dict, expected: str | None) -> None:
    """Raise a ValueError unless a file names a network that may be made."""
    name = content["model"]
    if not isinstance(name, str):
        raise ValueError(f"{path}: expected the name of a network, got {name!r}")
    if expected is not None and name != expected:
        raise ValueError(f"{path}: expected a checkpoint of {expected!r}, got one of {name!r}")
    if name != expected and name not in catalog.MODELS and not name.startswith("torchvision:"):
        raise ValueError(
            f"{path}: to load {name!r} the module would be imported; if you trust it, say expected={name!r}, "
            f"in a notebook network={name!r}, weights={str(path)!r}"
        )


def _check_size(path: str | Path, content: dict, most: int) -> None:
    """Raise a ValueError if the network that a file names takes more than so many bytes; none of it is made."""
    name, spec = content["model"], ImageSpec(**content["spec"])
    if spec.height * spec.width > limits.MOST_PIXELS:
        raise ValueError(f"expected images of at most {limits.MOST_PIXELS:,} pixels, got {spec.height} x {spec.width}")
    if ":" in name and not name.startswith("torchvision:"):
        return  # a function of the user's, who named it
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        plain = catalog.build(name, spec, width=content["width"], options=content["options"])
    limits.check(path, limits.bytes_of(plain.state_dict()), most, 1, f"a {name} of width {content['width']}")


def _build(content: dict, folder: Path | None = None) -> nn.Module:
    """A new network of the checkpoint's name, changed as it says; torch's random numbers go on as before."""
    spec = ImageSpec(**content["spec"])
    with torch.random.fork_rng(devices=[]):
        made = {"width": content["width"], "options": content["options"], "folder": folder}
        return changed(catalog.build(content["model"], spec, **made), content.get("changes", {}))


def _check_plain(model: nn.Module, plain: nn.Module) -> None:
    """Raise unless the model has the modules and tensors of the network that its file says."""
    wrapped = sorted(_parametrized(model) - _parametrized(plain))
    if wrapped:
        raise ValueError(f"expected plain weights, found parametrized layers {', '.join(wrapped)}; bake them first")
    found, wanted = _structure(model), _structure(plain)
    if found != wanted:
        changed = [f"{name}: {kind}" for name, kind in sorted(found ^ wanted)][:6]
        raise ValueError(
            f"expected the network that models.build makes, found it changed ({', '.join(changed)}); "
            "save its weights, in float32, before folding BatchNorm, attaching transforms or exchanging layers, or say "
            "the changes"
        )


def _parametrized(model: nn.Module) -> set[str]:
    """Names of the modules with parametrizations."""
    return {name for name, module in model.named_modules() if parametrize.is_parametrized(module)}


def _structure(model: nn.Module) -> set[tuple[str, str]]:
    """(name, kind or shape and type) of every module and every tensor."""
    kinds = {(name, type(module).__name__) for name, module in model.named_modules()}
    return kinds | {(name, f"{tuple(value.shape)} {value.dtype}") for name, value in model.state_dict().items()}
