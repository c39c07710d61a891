"""Rows that survive a crash: a table on disk that grows row by row and is always whole."""

import hashlib
from collections.abc import Hashable
from pathlib import Path

import pandas
from torch import Tensor

from rqlib.core import files


def fingerprint(*values) -> str:
    """Hex digest of all that rows depend on: tensors by their values, dicts of tensors, plain values."""
    digest = hashlib.sha256()
    for value in values:
        for part in value.values() if isinstance(value, dict) else (value,):
            is_tensor = isinstance(part, Tensor)
            digest.update(part.detach().cpu().contiguous().numpy().tobytes() if is_tensor else repr(part).encode())
    return digest.hexdigest()


class Ledger:
    """Finished rows of a long experiment, kept in one parquet file, or in memory alone.

    Args:
        path: where to keep them, None for memory alone. Rows found there are taken up again.
        key: the columns that tell rows apart.
        fingerprint: of all that the rows depend on.

    Raises:
        ValueError: the file's rows depend on something else, or it is no such file.
    """

    def __init__(self, path: str | Path | None, *, key: list[str], fingerprint: str):
        self.path, self.key, self.fingerprint = None if path is None else Path(path), key, fingerprint
        self.rows: dict[Hashable, dict] = {}
        if self.path is not None and self.path.exists():
            self._take_up()

    def _take_up(self) -> None:
        try:
            frame = pandas.read_parquet(self.path)
        except Exception as error:
            raise ValueError(f"{self.path}: not a table of finished rows ({error}); give another file") from error
        if frame.attrs.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"{self.path} holds the rows of another network, other images or other settings; "
                "give another file, or remove it to start again"
            )
        for row in frame.to_dict("records"):
            self._enter(row)

    def _enter(self, row: dict) -> None:
        self.rows[tuple(row[column] for column in self.key)] = row

    def __contains__(self, key: tuple) -> bool:
        return key in self.rows

    def __getitem__(self, key: tuple) -> dict:
        return self.rows[key]

    def append(self, row: dict) -> None:
        """Add a finished row, and write the table anew under a temporary name that then takes its place."""
        self._enter(row)
        if self.path is not None:
            frame = self.frame()
            frame.attrs["fingerprint"] = self.fingerprint
            with files.atomic(self.path) as part:
                frame.to_parquet(part)

    def frame(self) -> pandas.DataFrame:
        """The rows in the order they were finished."""
        return pandas.DataFrame(list(self.rows.values()))
