"""Limits on what a file may take: a small file from a stranger must not fill the memory."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

MOST_PIXELS = 2**24
"""Of one image: 4096 x 4096."""

MOST_FREE = 2**28
"""So many bytes of memory (256 MiB) any file may ask for; beyond them the next limits hold."""

MOST_INFLATED = 100
"""A zip of images may be so many times as large as itself when it is unpacked; files of images hardly shrink."""

MOST_DECODED = 1000
"""The pixels of a set of images may take so many times the bytes of their files."""

MOST_UNPACKED = 1000
"""The network in a compressed file may be so many times as large as the file; with one weight in 1000, it is 500."""

MOST_REBUILT = 100
"""A network that is changed after it is made (factorized, for example) may first be so many times as large."""


def check(path: str | Path, needed: int, own: int, times: int, what: str) -> None:
    """Raise a ValueError if ``needed`` bytes are more than `MOST_FREE` and more than ``times`` the file's ``own``."""
    allowed = max(MOST_FREE, times * own)
    if needed > allowed:
        raise ValueError(
            f"{path}: expected {what} to take at most {allowed / 1e6:,.0f} MB, as a file of this size may, got "
            f"{needed / 1e6:,.0f} MB; nothing was loaded; get the file from a source that you trust"
        )


def bytes_of(state: Mapping) -> int:
    """The memory that the tensors of a state dict take, or would take if they are on the device ``meta``."""
    return sum(value.untyped_storage().nbytes() for value in state.values() if isinstance(value, Tensor))
