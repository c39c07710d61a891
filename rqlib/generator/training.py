"""Train a generator on a teacher alone: its images are classified as asked and have the teacher's statistics.

Every epoch draws its random numbers from (seed, epoch) alone, so an interrupted training ends with the same weights
as an uninterrupted one.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn

from rqlib.core import runtime
from rqlib.generator import stepping
from rqlib.generator.mixtures import single, superposed
from rqlib.generator.network import Generator


def fit(
    generator: Generator,
    teacher: nn.Module,
    *,
    epochs: int = 20,
    steps: int = 200,
    batch_size: int = 128,
    lr: float = 1e-3,
    superposed_fraction: float = 0.0,
    after_epoch: Callable[[nn.Module, list[dict]], None] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> pandas.DataFrame:
    """Train the generator in place; the teacher keeps its weights, statistics and modes.

    Adam with betas (0.5, 0.999); after three quarters of the epochs the learning rate falls to a tenth.

    Args:
        steps: optimizer steps per epoch.
        lr: 1e-3 for 10 classes, 5e-3 for 100.
        superposed_fraction: share of batches of superposed labels (Qimera: 0.4; GDFQ: 0).
        after_epoch: called after every epoch with the generator and the rows so far.
        checkpoint: file of the whole state, written after every epoch. If it exists, training goes on from it.

    Returns:
        One row per epoch: epoch, loss, cross_entropy, batchnorm_distance (or total_variation), class_accuracy, lr,
        seconds.

    Raises:
        FloatingPointError: the loss is no longer finite; names the epoch and the last good state.
        ValueError: the checkpoint belongs to another training; a setting is out of range.
    """
    for name, number, least in (("epochs", epochs, 1), ("steps", steps, 1), ("batch_size", batch_size, 2)):
        if number < least:
            raise ValueError(f"expected {name} of at least {least}, got {number}")
    if not 0 <= superposed_fraction <= 1:
        raise ValueError(f"expected superposed_fraction in [0, 1], got {superposed_fraction}")
    settings = {"epochs": epochs, "steps": steps, "batch": batch_size, "superposed": superposed_fraction, "seed": seed}
    training = stepping.Training(generator, teacher, checkpoint, lr, settings)
    with stepping.frozen(teacher), training.mode():
        for epoch in runtime.progress(range(len(training.rows), epochs), "generator"):
            started, rng = time.perf_counter(), runtime.rng(seed, epoch)
            rate = lr * (0.1 if epoch >= 0.75 * epochs else 1.0)
            training.optimizer.param_groups[0]["lr"] = rate
            mixtures = (_mixture(training, batch_size, superposed_fraction, rng) for _ in range(steps))
            parts = stepping.mean([stepping.step(training, teacher, mixture, rng) for mixture in mixtures])
            training.add({"epoch": epoch + 1, **parts, "lr": rate, "seconds": time.perf_counter() - started})
            if after_epoch is not None:
                after_epoch(generator, training.rows)
    return pandas.DataFrame(training.rows)


def _mixture(training: stepping.Training, count: int, superposed_fraction: float, rng: torch.Generator) -> Tensor:
    classes = len(training.generator.embedding)
    if torch.rand((), generator=rng) < superposed_fraction:
        return superposed(count, classes, rng)
    return single(torch.randint(classes, (count,), generator=rng), classes)
