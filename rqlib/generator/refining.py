"""Move generated images until the signals they cause have the statistics that BatchNorms kept of the training images.

A generator meets these statistics only on the whole, because it must also give every image the class it was asked for.
A few steps on the pixels themselves come much closer (after GENIE, arXiv 2212.04780, which moves latent codes and the
generator instead). How many steps, and how long they are, was chosen on digits.
"""

import torch
from torch import Tensor, nn

from rqlib import data, measures
from rqlib.core import runtime
from rqlib.data import datasets
from rqlib.generator import batchnorm, sampling
from rqlib.generator.network import Generator
from rqlib.generator.stepping import frozen

STEPS, STEP_SIZE = 20, 0.02


def refined(generator: Generator, teacher: nn.Module, count: int = 12_800, *, seed: int = 0) -> data.Split:
    """Images uint8 of `generator.sample`, refined, each labeled as the teacher classifies it.

    The loss of accuracy on them is one minus the agreement with the teacher.

    Raises:
        ValueError: as `refine` and `generator.sample`.
    """
    made = sampling.sample(generator, count, seed=seed)
    moved = refine(made.images, teacher)
    with runtime.exact():
        seen = measures.logits(teacher, moved, made.labels).argmax(1)
    return data.Split(moved, seen.to(made.labels))


def refine(images: Tensor, teacher: nn.Module, *, steps: int | None = None, step_size: float = STEP_SIZE) -> Tensor:
    """Images uint8 (N, C, H, W) after steps of Adam on their pixels, which stay in [0, 1].

    The steps lower the mean over BatchNorms of `batchnorm.distance`, for 250 images at a time; a last batch that is
    smaller has a larger distance, and its images are refined less well.

    Args:
        steps: None for `STEPS`.
        step_size: learning rate of Adam, in pixels of [0, 1].

    Raises:
        ValueError: the teacher has no BatchNorm with running statistics; fewer than 1 step.
    """
    steps = STEPS if steps is None else steps
    if not batchnorm.keeping(teacher):
        raise ValueError("expected a network with BatchNorms that keep statistics, got one without; use `boundary`")
    if steps < 1:
        raise ValueError(f"expected steps >= 1, got {steps}")
    batches = datasets.to_pixels(images).split(batchnorm.BATCH)
    with frozen(teacher):
        parts = [_moved(x, teacher, steps, step_size) for x in runtime.progress(batches, "refine")]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def _moved(start: Tensor, teacher: nn.Module, steps: int, step_size: float) -> Tensor:
    policy = runtime.active()
    x = policy.place(start.clone()).requires_grad_()
    optimizer = torch.optim.Adam([x], step_size)
    for _ in range(steps):
        with batchnorm.watching(teacher) as distances, policy.autocast():
            teacher(x)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(distances).mean().backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return datasets.to_uint8(x.detach())
