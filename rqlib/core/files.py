"""Files: atomic writes, checked reading of tensors, tables and JSON, one owner per folder, where the project lies.

What is written here holds a digest of itself (`seals`), and is refused when a bit of it has changed.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas
import pyarrow
import torch
from filelock import FileLock, Timeout
from pyarrow import parquet

from rqlib.core import seals


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside ``path``, and rename it to ``path`` if the block succeeds.

    The file is therefore always whole: a crash, a full disk or ``kill -9`` leaves the old one as it was. What a killed
    process leaves of the temporary file, `sweep` removes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    part = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # until the process ends, however it ends
        part.chmod(0o644)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Remove the temporary files that killed processes have left of one file, or of all in a folder and below it.

    Args:
        name: of the file in the folder; None for all.
    """
    folder = Path(folder)
    for part in folder.rglob(".*") if name is None else folder.glob(f".{glob.escape(name)}.*"):
        if re.fullmatch(r"\..+\.\w{8}(\.\w+)?", part.name) and part.is_file() and abandoned(part):
            part.unlink(missing_ok=True)


def abandoned(path: str | Path) -> bool:
    """Whether no living process holds the lock (``flock``) of a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def save_text(path: str | Path, text: str) -> None:
    """Write a text (UTF-8) atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def save_tensors(path: str | Path, content: dict) -> None:
    """Write a dict of tensors and plain values atomically (torch's zip format)."""
    with atomic(path) as part:
        torch.save(content, part)
        with zipfile.ZipFile(part, "a") as archive:
            archive.comment = seals.BLANK
        seals.seal(part)


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """Read a dict of tensors; code inside a pickle is never executed (``weights_only=True``).

    Of a zip without a digest, which another program wrote, the checksums of its parts are compared.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, truncated, foreign, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found no file")
    _check_parts(path, sealed=seals.check(path))
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


def _check_parts(path: Path, *, sealed: bool) -> None:
    """Raise if torch's zip is larger unpacked than packed, or if it is not sealed and differs from its checksums."""
    if not zipfile.is_zipfile(path):
        return  # torch's old format has no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            plain = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            if not plain or sum(part.file_size for part in parts) > path.stat().st_size:
                wrong = "parts that are compressed or overlap"
            else:
                wrong = None if sealed else archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        wrong = error
    if wrong:
        raise seals.DamagedError(
            f"{path}: not a whole checkpoint of tensors: expected parts as torch.save writes them, got others "
            f"({wrong}); copy or download it again, or save it by torch.save(model.state_dict(), path)"
        )


def save_json(path: str | Path, content: dict) -> None:
    """Write a dict as JSON, atomically."""
    with atomic(path) as part:
        part.write_text(json.dumps(content | {"checksum": seals.BLANK.decode()}, indent=2), encoding="utf-8")
        seals.seal(part)


def load_json(path: str | Path) -> dict:
    """Read a dict from JSON.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or holds no dict.
    """
    seals.check(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}; remove the file and run its notebook again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected names and values in JSON, got {type(content).__name__}; remove the file")
    content.pop("checksum", None)
    return content


def save_table(path: str | Path, frame: pandas.DataFrame) -> None:
    """Write a table as Parquet, atomically."""
    table = pyarrow.Table.from_pandas(frame)
    with atomic(path) as part:
        parquet.write_table(table.replace_schema_metadata(table.schema.metadata | {b"checksum": seals.BLANK}), part)
        seals.seal(part)


def load_table(path: str | Path) -> pandas.DataFrame:
    """Read a table from Parquet; errors are those of `load_arrow`."""
    return load_arrow(path).to_pandas()


def load_arrow(path: str | Path) -> pyarrow.Table:
    """Read a table from Parquet as Arrow has it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or no table.
    """
    seals.check(path)
    try:
        content = pyarrow.BufferReader(Path(path).read_bytes())
        return parquet.ParquetFile(content, pre_buffer=False).read(use_threads=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole table ({error}); remove it and run its notebook again") from error


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
