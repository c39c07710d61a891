"""Long computations go on after an interruption: one file of state, checked to be of the same computation."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rqlib.core import files, stopping


class BelongsToAnotherError(ValueError):
    """The file holds the state of another computation."""


class Resumable:
    """The state of a long computation in one file, taken up again by the same computation only.

    Each `save` replaces the file atomically: a crash or ``kill -9`` leaves the state before or after.

    Args:
        path: of the file; None keeps nothing.
        identity: name -> plain value of everything that the result depends on; of tensors their `fingerprint`.
        kind: what is computed, in one or two words, for messages: ``training``, ``sweep``.
    """

    def __init__(self, path: str | Path | None, identity: Mapping, *, kind: str):
        self.path, self.identity, self.kind = None if path is None else Path(path), dict(identity), kind

    def load(self, device: torch.device | str = "cpu") -> dict:
        """The state that was saved last, its tensors on the device; empty if there is none.

        Raises:
            BelongsToAnotherError: the file holds the state of another computation; says in what it differs.
            ValueError: the file is truncated or foreign.
        """
        if self.path is None or not self.path.exists():
            return {}
        content = files.load_tensors(self.path, device)
        identity = content.pop("identity", None)
        if identity != self.identity:
            raise BelongsToAnotherError(
                f"{self.path} belongs to another {self.kind}: {_difference(self.identity, identity)}; "
                "remove the file or give another one"
            )
        return content

    def save(self, **state) -> None:
        """Keep this state: tensors and plain values.

        Raises:
            StoppedError: the process was asked to stop (`stopping`); the state is kept.
        """
        if self.path is not None:
            files.save_tensors(self.path, {"identity": self.identity, **state})
            stopping.stop_if_asked()


def fingerprint(*values) -> str:
    """Hex digest of all that a result depends on: tensors by their values, dicts of tensors, plain values.

    Images that are read from files (`data.imagenet.ImageFiles`) count by the paths of their files.
    """
    digest = hashlib.sha256()
    for value in values:
        for part in value.values() if isinstance(value, dict) else (value,):
            part = getattr(part, "paths", part)
            is_tensor = isinstance(part, Tensor)
            digest.update(part.detach().cpu().contiguous().numpy().tobytes() if is_tensor else repr(part).encode())
    return digest.hexdigest()


def _difference(expected: dict, found) -> str:
    """The names of an identity whose values differ, with short values."""
    if not isinstance(found, dict):
        return "it does not say of which"
    names = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    pairs = [(name, _short(found.get(name)), _short(expected.get(name))) for name in names]
    return ", ".join(f"{name} {got} instead of {own}" for name, got, own in pairs)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
