"""Draw images from a generator: of single classes, or between classes."""

import torch
from torch import Tensor, nn

from rqlib import data, measures
from rqlib.core import runtime
from rqlib.data import datasets
from rqlib.generator.mixtures import single, superposed
from rqlib.generator.network import Generator

BATCH = 256
"""Number of images that are drawn at once."""


def sample(generator: Generator, count: int = 12_800, *, seed: int = 0) -> data.Split:
    """Images uint8 (count, C, H, W) and the labels they were made for; the classes take turns. Drawn in eval mode.

    Raises:
        ValueError: count < 1.
    """
    if count < 1:
        raise ValueError(f"expected count >= 1, got {count}")
    classes = len(generator.embedding)
    labels = torch.arange(count) % classes
    made = images(generator, single(labels, classes), seed=seed)
    return data.Split(made, runtime.active().place(labels))


def boundary(generator: Generator, teacher: nn.Module, count: int = 12_800, *, seed: int = 0) -> data.Split:
    """Images uint8 of superposed labels, which lie between classes, each labeled as the teacher classifies it.

    The teacher is sure of the images of `sample`. A small change of the teacher is enough to change its answer on
    these, and the loss of accuracy on them is one minus the agreement with the teacher (boundary supporting
    samples: Qimera, arXiv 2111.02625).
    """
    mixtures = superposed(count, len(generator.embedding), runtime.rng(seed, 1))
    return as_seen(teacher, images(generator, mixtures, seed=seed))


def as_seen(teacher: nn.Module, images: Tensor) -> data.Split:
    """Images uint8 (N, C, H, W), each with the label that the teacher gives it."""
    unknown = runtime.active().place(torch.zeros(len(images), dtype=torch.long))
    with runtime.exact():
        seen = measures.logits(teacher, images, unknown).argmax(1)
    return data.Split(images, seen.to(unknown))


@torch.no_grad()
def images(generator: Generator, mixtures: Tensor, *, seed: int = 0) -> Tensor:
    """Images uint8 (N, C, H, W) of mixtures (N, K), each of its own seeded noise, drawn in eval mode."""
    policy = runtime.active()
    policy.place(generator)
    noise = torch.randn(len(mixtures), generator.embedding.shape[1], generator=runtime.rng(seed))
    pairs = zip(mixtures.split(BATCH), noise.split(BATCH), strict=True)
    with runtime.evaluating(generator), policy.autocast():
        parts = [datasets.to_uint8(generator(*map(policy.place, pair))) for pair in pairs]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)
