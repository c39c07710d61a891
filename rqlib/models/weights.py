"""Load weights from a file into a network, with one clear error if they are not its own."""

import difflib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rqlib.core import files, layers

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "ema", "weights", "state")
"""Under which of these names a file may hold its state dict, beside other things; the first one found is taken."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""Dropped if all keys bear one: DataParallel, torch.compile, and networks inside others put them there."""

COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
"""Ends of keys that count something and change no logit; a file may have them or not."""

MOST_LISTED = 3
"""So many keys are listed in an error."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict into the model, in place, each tensor in the precision that the model has.

    The file is torch's (`torch.save`) or ends in ``.safetensors``. It holds a state dict, or a dict with one under a
    name of `CONTAINERS`, also nested. `PREFIXES` that all keys bear are dropped, and so are `COUNTERS`, and
    auxiliary heads (names that begin with ``aux``) that the network lacks. If the keys are those of a network without
    normalization, the model keeps its own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold tensors, or it holds the weights of another network. Nothing is loaded.
    """
    state = state_dict(read(path), path)
    expected = model.state_dict()
    state = _fitted(state, expected)
    _check(state, expected, model, path)
    model.load_state_dict(state)


def read(path: str | Path) -> dict:
    """What a file of tensors holds, read without executing code: `files.load_tensors`, or safetensors by its ending.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, foreign, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return files.load_tensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of weights at {path}, found no file")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole file of safetensors ({error})") from error


def state_dict(content: Mapping, path: str | Path) -> dict[str, Tensor]:
    """The state dict in the content of a file; ``path`` is only named in errors.

    Raises:
        ValueError: there is none.
    """
    while inner := next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        held = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise ValueError(
            f"{path}: expected a state dict, or one under {', '.join(CONTAINERS)}; found {held}. "
            "Save it by torch.save(model.state_dict(), path)"
        )
    return state


def _fitted(state: dict, expected: Mapping[str, Tensor]) -> dict:
    """The state under the keys of the model; what changes no logit is dropped, or taken from the model."""
    state = {key: value for key, value in state.items() if key in expected or not _ends(key, COUNTERS)}
    candidates = [
        {f"{before}{key}": value for key, value in stripped.items()}
        for stripped in _stripped(state)
        for before in ("", "network.")
    ]
    best = max(candidates, key=lambda candidate: len(candidate.keys() & expected.keys()))
    if not any(key.startswith("normalize.") for key in best):
        best = {key: value for key, value in expected.items() if key.startswith("normalize.")} | best
    own = {key: value for key, value in expected.items() if _ends(key, COUNTERS) and key not in best}
    return {key: value for key, value in best.items() if key in expected or not _auxiliary(key, expected)} | own


def _stripped(state: dict) -> list[dict]:
    """The state as it is, then without the first prefix that all keys bear, without the next one, and so on."""
    found = [state]
    while common := [prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in found[-1])]:
        found.append({key.removeprefix(common[0]): value for key, value in found[-1].items()})
    return found


def _ends(key: str, names: tuple[str, ...]) -> bool:
    return key.rpartition(".")[2] in names


def _auxiliary(key: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether a key belongs to an auxiliary head, and the model has none of this name."""
    parts = key.split(".")
    heads = [".".join(parts[: at + 1]) + "." for at, part in enumerate(parts) if part.casefold().startswith("aux")]
    return bool(heads) and not any(name.startswith(heads[0]) for name in expected)


def _check(state: dict, expected: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> None:
    """Raise unless the state has exactly the expected keys and shapes."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = {
        key: (tuple(value.shape), tuple(state[key].shape))
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    }
    near = {key: difflib.get_close_matches(key, unexpected, 1) for key in missing[:MOST_LISTED]}
    described = [f"{key}, nearest {near[key][0]}" if near.get(key) else key for key in missing]
    problems = [_listed("missing", described), _listed("unexpected", unexpected), _shape_problem(shapes, model)]
    if any(problems):
        found = "; ".join(filter(None, problems))
        raise ValueError(f"{path} does not fit this network: {found}; nothing was loaded")


def _listed(kind: str, keys: list[str]) -> str:
    if not keys:
        return ""
    return f"{len(keys)} {kind} ({'; '.join(keys[:MOST_LISTED])}{'; ...' if len(keys) > MOST_LISTED else ''})"


def _shape_problem(shapes: dict[str, tuple], model: nn.Module) -> str:
    """A message about the first shape that differs, or about the number of classes if only the last layer differs."""
    if not shapes:
        return ""
    *_, (last, _) = layers.weighted_layers(model)
    key, (expected, got) = next(iter(shapes.items()))
    if all(name.rpartition(".")[0] == last for name in shapes) and got and expected[1:] == got[1:]:
        return f"they are for {got[0]} classes, expected {expected[0]} ({key}: expected {expected}, got {got})"
    return f"{len(shapes)} shapes differ (first {key}: expected {expected}, got {got})"
