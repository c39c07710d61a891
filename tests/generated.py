"""A small network trained on digits, and a generator of its images; each is trained once in a test run."""

import copy
import functools

import torch
from pandas import DataFrame
from torch import nn

from rqlib import data, generator, models, training
from rqlib.core import runtime
from rqlib.generator.network import Generator
from rqlib.training import objectives, recipes


@functools.cache
def teacher(name: str = "SmallCNN", width: float = 1.0) -> nn.Module:
    """A network after a few seconds of training, in eval mode. Every call returns the same object: do not change it."""
    digits = data.load("digits")
    runtime.seed_everything(0)
    network = models.build(name, digits.spec, width=width)
    recipe = recipes.Recipe(4, batch_size=64, lr=0.05, nesterov=True, schedule="triangle", augment=False)
    training.fit(network, digits, objectives.natural, recipe)
    return network.eval()


@functools.cache
def training_of_generator() -> tuple[Generator, DataFrame]:
    """A generator after a few seconds of training, and the rows of its training. Do not change it."""
    built = generator.build(teacher(), data.load("digits").spec, channels=16)
    return built, generator.fit(built, teacher(), epochs=4, steps=10, batch_size=32, lr=5e-3)


def same(one: nn.Module, two: nn.Module) -> bool:
    """Whether two networks have exactly the same weights and statistics."""
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def trained() -> Generator:
    """A copy of the trained generator."""
    return copy.deepcopy(training_of_generator()[0])
