"""`fit`, the only loop that trains on labels: it logs every epoch, can be resumed, and keeps the best epoch.

Order, augmentation and dropout of an epoch depend on (seed, epoch) alone. An interrupted training therefore goes
on from its last whole epoch exactly as if nothing had happened.
"""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rqlib import data, measures
from rqlib.attacks.ascent import NotFinite
from rqlib.core import files, runtime
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack, Objective
from rqlib.data.datasets import slices
from rqlib.training import objectives, overfitting
from rqlib.training.recipes import Recipe

ROBUST_ACCURACY = "validation_robust_accuracy"
"""Column of a history: the accuracy under attack on validation images."""

_CHECK_LOSS_EVERY = 16  # batches; not every one, because reading the loss waits for the GPU

_LEAST_BATCH = 2  # images: BatchNorm cannot be trained on one


def fit(
    model: nn.Module,
    dataset: data.ImageDataset,
    objective: Objective,
    recipe: Recipe,
    *,
    attack: Attack | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    after_epoch: Callable[[nn.Module, list[dict]], None] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    keep: str | None = None,
) -> pandas.DataFrame:
    """Train ``model`` in place, return one row per epoch, and leave the weights of the best epoch in the model.

    The best epoch has the highest accuracy on validation images, under ``attack`` if one is given (robust
    overfitting: Rice et al. 2020, arXiv 2002.11569). Without validation images it is the last epoch. A last batch of
    a single image joins the one before, with a warning, because BatchNorm cannot be trained on one image. A recipe of
    0 epochs only scores the network: one row, with the epoch 0 and without a loss.

    Args:
        objective: (model, x, y) -> loss, called in train mode. If it has a method ``begin_epoch(model, epoch, epochs,
            steps)``, this is called before every epoch, with the number of whole epochs done.
        attack: under which the validation images are also scored (column ``validation_robust_accuracy``); the
            column ``overfitting`` then says how this accuracy has developed (`overfitting.flag`).
        after_step: called with the model after every optimizer step, for example to project its weights.
        after_epoch: called with the model and the rows so far, for schedules and live curves.
        checkpoint: file in which the whole state is kept after every epoch, and from which the training goes on,
            on a CPU bit for bit. `weights` reads its best or last weights.
        keep: which weights stay in the model: ``best``, or ``last``; None: what the attribute ``keep`` of an objective
            says that changes between epochs, else the best.

    Returns:
        DataFrame with epoch (from 1), loss, validation_loss, validation_accuracy, lr, seconds, images_per_second,
        and kept: True in the one row whose weights are left in the model.

    Raises:
        FloatingPointError: the loss is no longer finite; the message says epoch, batch and last good state.
        ValueError: the checkpoint belongs to another training, as its recipe, seed, start weights or number of images
            tell (objective and attack are not compared); unknown ``keep``; BatchNorm is given batches of one image.
    """
    keep = keep or getattr(objective, "keep", "best")
    if keep not in ("best", "last"):
        raise ValueError(f"expected keep = 'best' or 'last', got {keep!r}")
    _say_joined(len(dataset.train.labels), recipe.batch_size)
    runtime.active().place(model)
    training = _Training(model, recipe, checkpoint, seed, len(dataset.train.labels))
    modes = {module: module.training for module in model.modules()}
    try:
        for epoch in runtime.progress(range(training.epoch, recipe.epochs), "epochs"):
            objectives.begin(objective, model, epoch, recipe.epochs, steps_of_an_epoch(dataset, recipe))
            training.add(_epoch(training, dataset, objective, attack, after_step, epoch))
            training.remember(keep)
            if after_epoch is not None:
                after_epoch(model, training.history)
            training.save()
        if not (recipe.epochs or training.history):
            training.add(_unchanged(training, dataset, attack))
            training.remember(keep)
            training.save()
    finally:
        for module, mode in modes.items():
            module.training = mode
    model.load_state_dict(training.best)
    return table(training.history, keep)


def table(rows: list[dict], keep: str) -> pandas.DataFrame:
    """The rows of a training's epochs, and the column ``kept``, which says whose weights are kept."""
    return pandas.DataFrame(rows).assign(kept=[number == kept_row(rows, keep) for number in range(len(rows))])


def kept_row(rows: list[dict], keep: str) -> int:
    """Number of the row, from 0, whose weights are kept: the best, of equally good ones the last, or the last of all.

    The accuracy under attack counts if there is one. Rows without validation images are not scored: the last is kept.
    """
    scores = [row.get(ROBUST_ACCURACY, row["validation_accuracy"]) for row in rows]
    if keep == "last" or scores[-1] is None:
        return len(rows) - 1
    return max(range(len(rows)), key=lambda number: (scores[number], number))


def weights(checkpoint: str | Path, which: str = "best") -> dict[str, Tensor]:
    """The ``best`` or ``last`` state dict of a training's checkpoint file."""
    if which not in ("best", "last"):
        raise ValueError(f"expected which = 'best' or 'last', got {which!r}")
    return files.load_tensors(checkpoint)[which]


def say_resumed(done: int, epochs: int) -> None:
    """Print where a training goes on after an interruption."""
    print(f"goes on at epoch {done + 1} of {epochs}" if done < epochs else f"all {epochs} epochs are done already")


class _Training:
    """The state of a training, which is kept after every epoch: weights, optimizer, averages, best epoch, history."""

    def __init__(self, model: nn.Module, recipe: Recipe, checkpoint: str | Path | None, seed: int, images: int):
        self.model, self.recipe, self.seed = model, recipe, seed
        start = fingerprint(model.state_dict())
        identity = {"recipe": dataclasses.asdict(recipe), "seed": seed, "images": images, "start": start}
        self.resumable = Resumable(checkpoint, identity, kind="training")
        self.optimizer = recipe.optimizer(model)
        self.average = None
        if recipe.ema_decay is not None:
            average = get_ema_multi_avg_fn(recipe.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.history: list[dict] = []
        self.best: dict[str, Tensor] = {}
        if state := self.resumable.load(next(model.parameters()).device):
            self._take_up(state)

    @property
    def epoch(self) -> int:
        """Number of whole epochs done."""
        return len(self.history)

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and kept: the one with averaged weights if the recipe averages them."""
        return self.model if self.average is None else self.average.module

    def add(self, row: dict) -> None:
        """Add the row of an epoch; if it has a robust accuracy, the accuracies so far are flagged."""
        self.history.append(row)
        if ROBUST_ACCURACY in row:
            row["overfitting"] = overfitting.flag([row[ROBUST_ACCURACY] for row in self.history])

    def remember(self, keep: str) -> None:
        """Copy the weights if those of the last epoch are to be kept."""
        if kept_row(self.history, keep) == len(self.history) - 1:
            self.best = {name: tensor.detach().clone() for name, tensor in self.scored.state_dict().items()}

    def save(self) -> None:
        """Write the whole state to the checkpoint."""
        self.resumable.save(
            last=self.model.state_dict(),
            best=self.best,
            optimizer=self.optimizer.state_dict(),
            average=self.average.state_dict() if self.average else None,
            history=self.history,
        )

    def _take_up(self, state: dict) -> None:
        say_resumed(len(state["history"]), self.recipe.epochs)
        self.model.load_state_dict(state["last"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best, self.history = state["best"], state["history"]


def _epoch(training: _Training, dataset, objective: Objective, attack, after_step, epoch: int) -> dict:
    """Train one epoch and score it: its row."""
    started = time.perf_counter()
    loss = _train_epoch(training, dataset, objective, after_step, epoch)
    seconds = time.perf_counter() - started
    return {
        "epoch": epoch + 1,
        "loss": loss,
        **validate(training.scored, dataset.validation, attack),
        "lr": training.optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "images_per_second": len(dataset.train.labels) / seconds,
    }


def _unchanged(training: _Training, dataset, attack) -> dict:
    """The row of a network that is only scored; it has no training loss."""
    row = {"epoch": 0, **validate(training.scored, dataset.validation, attack)}
    return row | {"lr": 0.0, "seconds": 0.0, "images_per_second": float("nan")}


def _train_epoch(training: _Training, dataset, objective: Objective, after_step, epoch: int) -> float:
    """One pass over the training images; returns the mean loss."""

    def then(model: nn.Module) -> None:
        if after_step is not None:
            after_step(model)
        if training.average is not None:
            training.average.update_parameters(model)

    batches, steps = batches_of_an_epoch(dataset, training.recipe, training.seed, epoch)
    with drawing(training.seed, epoch):
        return one_pass(training, training.model.train(), batches, objective, epoch, steps, after_step=then)


@contextlib.contextmanager
def drawing(seed: int, epoch: int) -> Iterator[None]:
    """Inside the block, torch's random numbers depend on seed and epoch alone; afterwards they go on as before."""
    with torch.random.fork_rng():
        torch.manual_seed(runtime.rng(seed, epoch).initial_seed())
        yield


def batches_of_an_epoch(dataset: data.ImageDataset, recipe: Recipe, seed: int, epoch: int) -> tuple[Iterator, int]:
    """The training images (x, y) in the order of this seed and epoch, augmented by the recipe, and how many batches."""
    options = {"shuffle": True, "augment": dataset.augment if recipe.augment else None, "least": _least(recipe)}
    batches = data.batches(*dataset.train, recipe.batch_size, rng=runtime.rng(seed, epoch), **options)
    return batches, steps_of_an_epoch(dataset, recipe)


def steps_of_an_epoch(dataset: data.ImageDataset, recipe: Recipe) -> int:
    """The number of batches of one epoch."""
    return len(slices(len(dataset.train.labels), recipe.batch_size, _least(recipe)))


def _least(recipe: Recipe) -> int:
    """The fewest images of a batch."""
    return min(_LEAST_BATCH, recipe.batch_size)


def one_pass(
    training, model: nn.Module, batches: Iterator, objective: Objective, epoch: int, steps: int, *, after_step
):
    """Take one optimizer step for each batch (x, y); the mean loss.

    Args:
        training: has the optimizer, the recipe, and ``resumable``, whose path an error names.
        model: in train mode, with the parameters that the optimizer moves.
        epoch, steps: whole epochs done, and batches of an epoch: they say the learning rate.
        after_step: called with the model after every step.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    optimizer, recipe, losses = training.optimizer, training.recipe, []
    for step, (x, y) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch + (step + 1) / (steps + 1))
        with runtime.active().autocast(), _batch_of_one_explained(len(y)):
            try:
                loss = objective(model, x, y)
            except NotFinite:  # the objective's attack is the first to see that the training diverged
                _check_finite([*losses, x.new_tensor(torch.nan)], epoch, training.resumable.path)
                raise
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        losses.append(loss.detach())
        after_step(model)
        if (step + 1) % _CHECK_LOSS_EVERY == 0 or step + 1 == steps:
            _check_finite(losses, epoch, training.resumable.path)
    return torch.stack(losses).mean().item()


def _say_joined(images: int, batch_size: int) -> None:
    """Warn if the last batch would be a single image."""
    if images > batch_size > 1 and images % batch_size == 1:
        warnings.warn(
            f"{images:,} training images in batches of {batch_size} leave one image, on which BatchNorm cannot be "
            f"trained: it joins the last batch, which then has {batch_size + 1}",
            stacklevel=3,
        )


@contextlib.contextmanager
def _batch_of_one_explained(images: int) -> Iterator[None]:
    """Inside the block, torch's error about BatchNorm on a batch of one image says what to change."""
    try:
        yield
    except ValueError as error:
        if images == 1 and "more than 1 value per channel" in str(error):
            raise ValueError(
                "expected batches of at least two images, because BatchNorm cannot be trained on one, got a batch of "
                "one; take batch_size of at least 2 and at least two training images"
            ) from error
        raise


@torch.no_grad()
def validate(model: nn.Module, split: data.Split, attack: Attack | None) -> dict:
    """Loss and accuracy on validation images, and accuracy under the attack if there is one."""
    if not len(split.labels):
        return {"validation_loss": None, "validation_accuracy": None}
    logits, labels = measures.logits(model, *split), split.labels.cpu()
    row = {
        "validation_loss": F.cross_entropy(logits, labels).item(),
        "validation_accuracy": (logits.argmax(1) == labels).float().mean().item(),
    }
    if attack is not None:
        with torch.enable_grad():
            row[ROBUST_ACCURACY] = measures.accuracy(model, *split, attack=attack)
    return row


def _check_finite(losses: list[Tensor], epoch: int, checkpoint: Path | None) -> None:
    """Raise if one of the last losses is not finite."""
    checked = max(0, len(losses) - _CHECK_LOSS_EVERY)
    bad = (~torch.isfinite(torch.stack(losses[checked:]))).nonzero() + checked
    if len(bad):
        kept = f"the last good state is epoch {epoch} in {checkpoint}" if checkpoint and epoch else "no epoch was kept"
        raise FloatingPointError(
            f"loss {losses[bad[0]].item()} in epoch {epoch + 1}, batch {bad[0].item() + 1}: training stopped; {kept}. "
            "Lower the learning rate, or use precision float32"
        )
