"""A small network trained on digits, and a generator of its images, once a test run."""

import copy
import functools

from torch import nn

from rqlib import data, generator, models, training
from rqlib.core import runtime
from rqlib.generator.network import Generator, build
from rqlib.training import objectives, recipes


@functools.cache
def teacher(name: str = "SmallCNN") -> nn.Module:
    """A network after a few seconds of training, in eval mode; the same object every time: do not change it."""
    digits = data.load("digits")
    runtime.seed_everything(0)
    network = models.build(name, digits.spec, width=0.25 if "AlexNet" in name else 1.0)
    recipe = recipes.Recipe(8, batch_size=64, lr=0.05, nesterov=True, schedule="triangle", augment=False)
    training.fit(network, digits, objectives.natural, recipe)
    return network.eval()


@functools.cache
def _trained() -> Generator:
    built = build(teacher(), data.load("digits").spec, channels=16)
    generator.fit(built, teacher(), epochs=4, steps=15, batch_size=64, lr=3e-3)
    return built


def trained() -> Generator:
    """A copy of a generator trained for a few seconds."""
    return copy.deepcopy(_trained())
