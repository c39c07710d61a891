"""Every test computes in float32 on the CPU; it and every process that it starts use one thread.

Tests then neither wait for each other nor depend on the machine.
"""

import os

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
hypothesis.settings.register_profile("slow machines", deadline=None)
hypothesis.settings.load_profile("slow machines")


@pytest.fixture(autouse=True)
def float32():
    from rqlib.core import runtime  # after the number of threads is set

    with runtime.using("cpu", "float32"):
        yield
