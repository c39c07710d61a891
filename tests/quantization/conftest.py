"""float32 on the CPU for all tests of this folder, and a network trained on real digits."""

import pytest

from rqlib import data, models, training
from rqlib.core import runtime
from rqlib.training.recipes import Recipe


@pytest.fixture(scope="module", autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def trained(digits):
    """Do not change it."""
    recipe = Recipe(6, batch_size=50, lr=0.05, nesterov=True, weight_decay=5e-4, schedule="triangle", augment=False)
    with runtime.using("cpu", "float32"):
        runtime.seed_everything(0)
        network = models.build("SmallCNN", digits.spec)
        training.fit(network, digits, training.objective("natural"), recipe)
    return network.eval()
