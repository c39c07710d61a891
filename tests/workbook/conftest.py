"""Every test has a folder of its own for outputs, and leaves no run held and no policy changed."""

import pytest

from rqlib.core import runtime
from tests.workbook.runs import forget


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """A folder for the outputs, not there yet."""
    monkeypatch.setenv("RQLIB_OUTPUTS", str(tmp_path / "outputs"))
    with runtime.using("cpu", "float32"):
        yield tmp_path / "outputs"
    forget()
