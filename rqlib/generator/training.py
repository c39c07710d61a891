"""Train a generator on a teacher alone: classified as asked, with the teacher's BatchNorm statistics.

Loss = CE(teacher(x), mixture) + 0.1 mean over BatchNorms of their distance. A teacher without BatchNorm has kept
no statistics; a smoothness prior, the total variation, stands in their place. Every epoch draws from (seed, epoch)
alone, so an interrupted training goes on as if nothing had happened.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.core import runtime
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack
from rqlib.generator import batchnorm
from rqlib.generator.network import Generator, single, superposed

PRIOR_WEIGHTS = {"batchnorm_distance": 0.1, "total_variation": 1.0}
ADVERSARIAL_WEIGHT = 0.5


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
    """Train the generator in place, one row an epoch; the teacher stays as it is, in weights, statistics and modes.

    Adam (0.5, 0.999); the learning rate falls to a tenth after three quarters of the epochs.

    Args:
        lr: 1e-3 for 10 classes, 5e-3 for 100.
        superposed_fraction: share of batches of superposed labels (Qimera: 0.4; GDFQ: 0).
        after_epoch: called with the generator and the rows so far.
        checkpoint: file of the whole state after every epoch; if it exists, training goes on from it.

    Returns:
        Columns: epoch, loss, cross_entropy, batchnorm_distance (or total_variation), class_accuracy, lr, seconds.

    Raises:
        FloatingPointError: the loss is no longer finite; names the epoch and the last good state.
        ValueError: the checkpoint belongs to another training; a setting out of range.
    """
    _check(1, epochs=epochs, steps=steps)
    _check(2, batch_size=batch_size)
    if not 0 <= superposed_fraction <= 1:
        raise ValueError(f"expected superposed_fraction in [0, 1], got {superposed_fraction}")
    settings = {"epochs": epochs, "steps": steps, "batch": batch_size, "superposed": superposed_fraction, "seed": seed}
    training = Training(generator, teacher, checkpoint, lr, settings)
    with frozen(teacher), training.mode():
        for epoch in runtime.progress(range(len(training.rows), epochs), "generator"):
            started, rng = time.perf_counter(), runtime.rng(seed, epoch)
            training.lr = lr * (0.1 if epoch >= 0.75 * epochs else 1.0)
            mixtures = (_mixture(training, batch_size, superposed_fraction, rng) for _ in range(steps))
            rows = [step(training, teacher, mixture, rng) for mixture in mixtures]
            training.add(
                {"epoch": epoch + 1, **mean(rows), "lr": training.lr, "seconds": time.perf_counter() - started}
            )
            if after_epoch is not None:
                after_epoch(generator, training.rows)
    return pandas.DataFrame(training.rows)


class Training:
    """A generator, its optimizer and its rows; kept in a file after every row, taken up again from it.

    Args:
        settings: plain values that, with both networks as they are, tell this training from others.
    """

    def __init__(
        self, generator: Generator, teacher: nn.Module, checkpoint: str | Path | None, lr: float, settings: dict
    ):
        self.generator, self.rows = runtime.active().place(generator), []
        networks = {"start": generator, "teacher": teacher}
        prints = {name: fingerprint(network.state_dict()) for name, network in networks.items()}
        self.kept = Resumable(checkpoint, settings | {"first_lr": lr} | prints, kind="training")
        self.optimizer = torch.optim.Adam(generator.parameters(), lr, betas=(0.5, 0.999))
        if state := self.kept.load(generator.embedding.device):
            self.generator.load_state_dict(state["generator"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.rows = state["rows"]

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.param_groups[0]["lr"] = value

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """The generator in train mode; afterwards in eval mode."""
        try:
            self.generator.train()
            yield
        finally:
            self.generator.eval()

    def add(self, row: dict) -> None:
        """Keep a row, and with it the state, if what it measured is finite."""
        if not torch.tensor(row.get("loss", 0.0)).isfinite():
            path = self.kept.path
            kept = f"{path} holds the state after {len(self.rows)}" if path else "none was kept"
            raise FloatingPointError(
                f"loss {row['loss']} in epoch or round {len(self.rows) + 1} of the generator: {kept}. Lower the "
                "learning rate, or see whether the teacher's logits and BatchNorm statistics are finite"
            )
        self.rows.append(row)
        state = {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.kept.save(**state, rows=self.rows)


@contextlib.contextmanager
def frozen(teacher: nn.Module) -> Iterator[nn.Module]:
    """The teacher in eval mode, its weights without gradients; afterwards as it was, also by an exception."""
    wanted = {parameter: parameter.requires_grad for parameter in teacher.parameters()}
    with runtime.evaluating(runtime.active().place(teacher)):
        try:
            yield teacher.requires_grad_(False)
        finally:
            for parameter, value in wanted.items():
                parameter.requires_grad_(value)


def step(
    training: Training, teacher: nn.Module, mixture: Tensor, rng: torch.Generator, attack: Attack | None = None
) -> dict[str, Tensor]:
    """One optimizer step; the parts of its loss.

    Args:
        mixture: (B, K), what the images shall be classified as.
        attack: adds 0.5 CE of the attacked copies of the images, whose perturbation counts as constant.
    """
    policy, generator = runtime.active(), training.generator
    noise = torch.randn(len(mixture), generator.embedding.shape[1], generator=rng)
    mixture, noise = policy.place(mixture), policy.place(noise)
    with policy.autocast():
        x = generator(mixture, noise)
        with batchnorm.watching(teacher) as distances:
            logits = teacher(x).float()
        adversarial = _adversarial_loss(teacher, x, mixture, attack) if attack else 0.0
    ce, (name, prior) = F.cross_entropy(logits, mixture), _prior(x, distances)
    loss = ce + PRIOR_WEIGHTS[name] * prior + ADVERSARIAL_WEIGHT * adversarial
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    training.optimizer.step()
    asked = (logits.argmax(1) == mixture.argmax(1)).float().mean()
    parts = {"loss": loss, "cross_entropy": ce, name: prior, "class_accuracy": asked}
    return {name: value.detach() for name, value in parts.items()}


def mean(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each part over steps."""
    return {name: torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}


def _adversarial_loss(teacher: nn.Module, x: Tensor, mixture: Tensor, attack: Attack) -> Tensor:
    moved = attack(teacher, x.detach(), mixture.argmax(1)) - x.detach()
    return F.cross_entropy(teacher(x + moved).float(), mixture)


def _prior(x: Tensor, distances: list[Tensor]) -> tuple[str, Tensor]:
    if distances:
        return "batchnorm_distance", torch.stack(distances).mean()
    return "total_variation", sum(x.diff(dim=axis).abs().mean() for axis in (2, 3))


def _mixture(training: Training, count: int, superposed_fraction: float, rng: torch.Generator) -> Tensor:
    classes = len(training.generator.embedding)
    if torch.rand((), generator=rng) < superposed_fraction:
        return superposed(count, classes, rng)
    return single(torch.randint(classes, (count,), generator=rng), classes)


def _check(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"expected {name} of at least {least}, got {number}")
