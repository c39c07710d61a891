import pytest

from rqlib import models
from rqlib.core import runtime


@pytest.fixture(scope="module", autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


@pytest.fixture(scope="module")
def dense(plan):
    """The network that is pruned by the plan of a module."""
    runtime.seed_everything(0)
    return models.build("SmallCNN", plan.images.spec)
