"""Real images and published tables, kept beside the checkout. Without them the tests that need them are skipped."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("RQLIB_SHARED", Path(__file__).parents[2] / "shared" / "data"))


def shared(name: str) -> Path:
    """The path of a shared file; the test is skipped if there is none."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"no {name} in {SHARED} (the variable RQLIB_SHARED names its folder)")
    return path
