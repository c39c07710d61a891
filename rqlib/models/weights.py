"""Load weights from a file into a network, with one clear error if they are not its own."""

from pathlib import Path

from torch import Tensor, nn

from rqlib.core import files, layers

CONTAINERS = ("state_dict", "weights")
PREFIXES = ("module.", "_orig_mod.")
AUXILIARY = ("network.aux1.", "network.aux2.", "network.AuxLogits.")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict into the model, in place.

    The file holds a state dict, or a dict with one under "state_dict" or "weights". Prefixes of DataParallel and
    torch.compile are dropped, and auxiliary heads that the model lacks. If the keys are those of a network without
    normalization, the model keeps its own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold tensors, or it holds the weights of another network.
    """
    content = files.load_tensors(path)
    state = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), content)
    state = _without_auxiliary(_wrapped(_stripped(state), model), model)
    _check(state, model, path)
    model.load_state_dict(state)


def _stripped(state: dict) -> dict:
    for prefix in PREFIXES:
        if all(str(key).startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _wrapped(state: dict, model: nn.Module) -> dict:
    """The state with the keys of the model: its normalization is added, and ``network.`` put before foreign keys."""
    if any(str(key).startswith("normalize.") for key in state):
        return state
    own = {key: value for key, value in model.state_dict().items() if key.startswith("normalize.")}
    prefix = "network." if hasattr(model, "network") else ""
    return own | {f"{prefix}{key}": value for key, value in state.items()}


def _without_auxiliary(state: dict, model: nn.Module) -> dict:
    expected = model.state_dict()
    return {key: value for key, value in state.items() if key in expected or not str(key).startswith(AUXILIARY)}


def _check(state: dict, model: nn.Module, path: str | Path) -> None:
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = {
        key: (tuple(value.shape), tuple(getattr(state[key], "shape", ())))
        for key, value in expected.items()
        if key in state and not (isinstance(state[key], Tensor) and state[key].shape == value.shape)
    }
    problems = [_listed("missing", missing), _listed("unexpected", unexpected), _shape_problem(shapes, model)]
    if any(problems):
        raise ValueError(f"{path} does not fit this network: " + "; ".join(filter(None, problems)))


def _listed(kind: str, keys: list, most: int = 3) -> str:
    if not keys:
        return ""
    return f"{len(keys)} {kind} ({', '.join(map(str, keys[:most]))}{', ...' if len(keys) > most else ''})"


def _shape_problem(shapes: dict[str, tuple], model: nn.Module) -> str:
    """A message about the first shape that differs, or about the number of classes if only the last layer differs."""
    if not shapes:
        return ""
    *_, (last, _) = layers.weighted_layers(model)
    key, (expected, got) = next(iter(shapes.items()))
    if all(name.rpartition(".")[0] == last for name in shapes) and got and expected[1:] == got[1:]:
        return f"they are for {got[0]} classes, expected {expected[0]} ({key}: expected {expected}, got {got})"
    return f"{len(shapes)} shapes differ (first {key}: expected {expected}, got {got})"
