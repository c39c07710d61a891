"""Files: atomic writes, checked reading of tensors, one owner per folder, and where the project lies."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside ``path``, and rename it to ``path`` if the block succeeds.

    The file is therefore always whole: a crash, a full disk or ``kill -9`` leaves the old one as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    part.chmod(0o644)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_text(path: str | Path, text: str) -> None:
    """Write a text (UTF-8) atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def save_tensors(path: str | Path, content: dict) -> None:
    """Write a dict of tensors and plain values atomically (torch's zip format)."""
    with atomic(path) as part:
        torch.save(content, part)


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """Read a dict of tensors; code inside a pickle is never executed (``weights_only=True``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, foreign, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found no file")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"{path}: not a whole checkpoint of tensors ({reason}); nothing of it was executed. "
            "Save weights as a plain state dict: torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    return content


def lock(folder: str | Path) -> FileLock:
    """Lock a folder for this process until ``release()``; the operating system unlocks it if the process dies.

    Raises:
        RuntimeError: it is locked already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    taken = FileLock(folder / ".lock")
    try:
        taken.acquire(blocking=False)
    except Timeout:
        raise RuntimeError(
            f"output folder in use: another run writes to {folder}; wait for it, or give this run another identity"
        ) from None
    return taken


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes; the file is read in pieces and may be larger than the memory."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def project_root() -> Path:
    """The folder that holds data/, params/ and outputs/: the one that the variable ``RQLIB_ROOT`` names.

    Without it, the first folder with this project's pyproject.toml, searched upward from the working folder and
    then from this file; else the working folder.
    """
    if root := os.environ.get("RQLIB_ROOT"):
        return Path(root).expanduser().resolve()
    above = [Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents]
    for folder in above:
        project = folder / "pyproject.toml"
        if project.is_file() and 'name = "rqlib"' in project.read_text(encoding="utf-8"):
            return folder
    return Path.cwd()
