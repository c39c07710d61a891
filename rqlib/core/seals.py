"""A digest inside a file says whether the file is whole: with a single bit changed, the file is refused.

The digest is the SHA-256 of all bytes of the file, with zeros in the place of the digest itself. A writer leaves
`BLANK` where its format has room for a text (the comment of a zip, a value in JSON, the metadata of a table), and
`seal` writes the digest there. It stands between two marks, so that damage to one of them does not hide that there is
a digest.
"""

import hashlib
import mmap
from pathlib import Path

BEFORE, AFTER = b"rqlib-sha256:", b":rqlib-sha256-end"
_ZEROS = b"0" * 64

BLANK = BEFORE + _ZEROS + AFTER
"""What a writer leaves in the file, once."""


class DamagedError(ValueError):
    """The bytes of a file are not those that were written."""


def seal(path: str | Path) -> None:
    """Write the digest of a file over the zeros of `BLANK` in it."""
    with Path(path).open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start, digest = content.rfind(BLANK), hashlib.sha256(content).hexdigest()
        if start < 0:
            raise ValueError(f"{path}: expected room for a digest (seals.BLANK), found none; nothing was changed")
        file.seek(start + len(BEFORE))
        file.write(digest.encode())


def check(path: str | Path) -> bool:
    """Whether a file holds a digest; one without may be whole or not.

    Raises:
        DamagedError: it holds one, and its bytes are not those that were written.
    """
    path = Path(path)
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        before, end = content.rfind(BEFORE), content.rfind(AFTER)
        if before < 0 and end < 0:
            return False
        start = before + len(BEFORE)
        with memoryview(content) as view:
            digest = hashlib.sha256(view[:start])
            digest.update(_ZEROS)
            digest.update(view[max(end, 0) :])
        if before < 0 or end != start + len(_ZEROS) or content[start:end] != digest.hexdigest().encode():
            raise DamagedError(
                f"{path} is damaged: expected the bytes that were written, got others (its checksum differs); "
                "restore it from a copy, or remove it and run its notebook again"
            )
    return True
