"""Move generated images until the signals they cause have the statistics that BatchNorms kept of the training images.

A generator meets these statistics only on the whole, because it must also give every image the class it was asked for.
Moving the pixels themselves comes much closer (after GENIE, arXiv 2212.04780, which moves latent codes and the
generator instead). The distance of a fixed batch has no noise, so L-BFGS descends it in a tenth of the passes that
Adam takes. Images that were moved a little are too easy for a quantized network, and images that were moved far too
hard; where real ones lie differs from network to network. So a third of the images is moved a little, a third farther
and a third far. These numbers were chosen on digits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import runtime
from rqlib.data import datasets
from rqlib.generator import batchnorm, sampling
from rqlib.generator.network import Generator
from rqlib.generator.stepping import frozen

PASSES = 10, 20, 40
"""Forward and backward passes for each image: of the first third, the second and the last."""
MEMORY = 5
"""Steps that L-BFGS remembers; each takes twice the memory of the images."""


def refined(generator: Generator, teacher: nn.Module, count: int = 12_800, *, seed: int = 0) -> data.Split:
    """Images uint8 of `generator.sample`, refined, each labeled as the teacher classifies it.

    The loss of accuracy on them is one minus the agreement with the teacher.

    Raises:
        ValueError: as `refine` and `generator.sample`.
    """
    made = sampling.sample(generator, count, seed=seed)
    return sampling.as_seen(teacher, refine(made.images, teacher))


def refine(images: Tensor, teacher: nn.Module, *, passes: Sequence[int] = PASSES) -> Tensor:
    """Images uint8 (N, C, H, W), moved within [0, 1] to lower the mean over BatchNorms of `batchnorm.distance`.

    They are moved together, up to 250 at a time. A small batch is farther from the statistics than a large one.

    Args:
        passes: forward and backward passes; the images take the numbers in turn.

    Raises:
        ValueError: the teacher has no BatchNorm with running statistics, or images pass through none; a number of
            passes below 1, or none.
    """
    if not batchnorm.keeping(teacher):
        raise ValueError("expected a network with BatchNorms that keep statistics, got one without; use `boundary`")
    if not passes or min(passes) < 1:
        raise ValueError(f"expected numbers of passes >= 1, got {passes}")
    moved, turns = images.clone(), range(min(len(passes), len(images)))
    with frozen(teacher):
        for turn in runtime.progress(turns, "refine"):
            pixels = datasets.to_pixels(images[turn :: len(passes)])
            batches = pixels.chunk(math.ceil(len(pixels) / batchnorm.BATCH))
            moved[turn :: len(passes)] = torch.cat([_moved(x, teacher, passes[turn]) for x in batches])
    return moved


def _moved(start: Tensor, teacher: nn.Module, passes: int) -> Tensor:
    policy = runtime.active()
    x = start.to(policy.device, memory_format=torch.contiguous_format, copy=True).requires_grad_()
    limits = {"max_iter": passes, "max_eval": passes, "tolerance_grad": 0, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([x], history_size=MEMORY, line_search_fn="strong_wolfe", **limits)

    def distance() -> Tensor:
        with batchnorm.watching(teacher) as distances:
            teacher(policy.place(x.clamp(0, 1)))
        if not distances:
            raise ValueError("expected a BatchNorm that images pass through, got none in eval mode; use `boundary`")
        optimizer.zero_grad(set_to_none=True)
        mean = torch.stack(distances).mean()
        mean.backward()
        return mean

    optimizer.step(distance)
    return datasets.to_uint8(x.detach().clamp(0, 1))
