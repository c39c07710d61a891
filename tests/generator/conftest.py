"""Generators are tested in float32 on the CPU."""

import pytest

from rqlib.core import runtime


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield
