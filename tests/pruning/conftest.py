import pytest

from rqlib.core import runtime


@pytest.fixture(scope="module", autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield
