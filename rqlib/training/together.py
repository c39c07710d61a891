"""Trainings of several seeds at once, as one `Stack`: on a GPU. Each network sees what `fit` would show it alone."""

import copy
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import runtime
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack, Objective
from rqlib.training import loop, objectives, overfitting
from rqlib.training.objectives import Penalized
from rqlib.training.recipes import Recipe
from rqlib.training.stack import Stack, check, see_first


def fit_together(
    networks: Sequence[nn.Module],
    dataset: data.ImageDataset,
    objective: Objective,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    attack: Attack | None = None,
    checkpoint: str | Path | None = None,
) -> list[pandas.DataFrame]:
    """Train networks of the same layers in place, each with its seed; their histories, as those of `fit`.

    Order and augmentation of the images are those of `fit` with the same seed. Dropout, noise and starts of attacks
    are drawn for all networks together, so they differ; they depend on the first seed and the epoch alone.
    The column ``loss`` is the mean over the networks.

    Args:
        networks: on the active device; each ends with the weights of its best epoch on validation images.
        checkpoint: file in which everything is kept after every epoch, and from which the training goes on.

    Raises:
        ValueError: a recipe that averages weights or clips gradients; an objective that keeps the last epoch; the
            checkpoint belongs to another training.
        FloatingPointError: a loss is no longer finite.
    """
    if not can_be_joined(recipe, objective):
        raise ValueError(
            "expected a recipe without ema_decay and clip_norm, and an objective that keeps the best epoch; train the "
            "networks by fit"
        )
    training = _Together(networks, dataset, recipe, seeds, checkpoint)
    goal = _OfStack(objective, len(networks))
    for epoch in runtime.progress(range(len(training.histories[0]), recipe.epochs), "epochs"):
        objectives.begin(goal, training.stack, epoch, recipe.epochs, loop.steps_of_an_epoch(dataset, recipe))
        started = time.perf_counter()
        loss = _epoch(training, dataset, goal, epoch) / len(networks)
        training.stack.unstack(networks)
        training.score(dataset, attack, epoch, loss, time.perf_counter() - started)
    for network, best in zip(networks, training.best, strict=True):
        network.load_state_dict(best)
    return [loop.table(history, "best") for history in training.histories]


def can_be_joined(recipe: Recipe, objective: Objective) -> bool:
    """Whether `fit_together` takes them: no weights are averaged, no gradients clipped, the best epoch is kept."""
    keeps_best = getattr(objective, "keep", "best") == "best"
    return recipe.ema_decay is None and recipe.clip_norm is None and keeps_best


class _Together:
    """The stack, its optimizer, and of each network the history and the best weights; kept after every epoch."""

    def __init__(self, networks, dataset, recipe: Recipe, seeds, checkpoint):
        self.networks, self.recipe, self.seeds = networks, recipe, seeds
        start = fingerprint(*(network.state_dict() for network in networks))
        identity = {"recipe": dataclasses.asdict(recipe), "seeds": [*seeds], "start": start}
        self.resumable = Resumable(checkpoint, identity, kind="training")
        for network, seed in zip(networks, seeds, strict=True):
            batches, _ = loop.batches_of_an_epoch(dataset, recipe, seed, 0)
            x, _ = next(batches)
            see_first(network, x)
        self.stack = runtime.active().place(Stack(networks))
        check(self.stack, networks, x[:4])
        self.optimizer = recipe.optimizer(self.stack)
        self.histories: list[list[dict]] = [[] for _ in networks]
        self.best: list[dict] = [{} for _ in networks]
        if state := self.resumable.load(next(self.stack.parameters()).device):
            self.stack.load_state_dict(state["last"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.histories, self.best = state["histories"], state["best"]
            loop.say_resumed(len(self.histories[0]), recipe.epochs)

    def score(self, dataset, attack: Attack | None, epoch: int, loss: float, seconds: float) -> None:
        """Validate every network, remember its weights if they are the best so far, and keep everything."""
        row = {"epoch": epoch + 1, "loss": loss, "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        row["images_per_second"] = len(self.networks) * len(dataset.train.labels) / seconds
        for number, (network, history) in enumerate(zip(self.networks, self.histories, strict=True)):
            history.append(row | loop.validate(network, dataset.validation, attack))
            if attack is not None:
                scores = [one.get(loop.ROBUST_ACCURACY, one["validation_accuracy"]) for one in history]
                history[-1]["overfitting"] = overfitting.flag(scores)
            if loop.kept_row(history, "best") == len(history) - 1:
                self.best[number] = {name: one.clone() for name, one in network.state_dict().items()}
        state = {"last": self.stack.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.resumable.save(**state, best=self.best, histories=self.histories)


class _OfStack:
    """The sum of what an objective says of each network of a stack; each network has a penalty of its own."""

    def __init__(self, objective: Objective, count: int):
        self.penalized = [copy.deepcopy(objective) for _ in range(count)] if isinstance(objective, Penalized) else []
        self.inner = objective.objective if self.penalized else objective

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int, steps: int) -> None:
        for one in self.penalized or [self.inner]:
            objectives.begin(one, model, epoch, epochs, steps)

    def __call__(self, stack: Stack, x: Tensor, y: Tensor) -> Tensor:
        loss = stack.count * self.inner(stack, x, y)  # which is the mean over the images of all networks
        if not self.penalized:
            return loss
        return loss + self.penalized[0].strength * stack.penalty([one.penalty for one in self.penalized])


def _epoch(training: _Together, dataset, goal: _OfStack, epoch: int) -> float:
    """One pass over the images; the mean of the summed losses."""
    found = [loop.batches_of_an_epoch(dataset, training.recipe, seed, epoch) for seed in training.seeds]
    batches = (
        tuple(torch.cat([part[which] for part in parts]) for which in (0, 1))
        for parts in zip(*(one for one, _ in found), strict=True)
    )
    stack, (_, steps) = training.stack.train(), found[0]
    with loop.drawing(training.seeds[0], epoch):
        return loop.one_pass(training, stack, batches, goal, epoch, steps, after_step=lambda _: None)
