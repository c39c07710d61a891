"""Trainings of several seeds at once, as one `Stack`: on a GPU. Each network sees what `fit` would show it alone."""

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
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
from rqlib.training.stack import Stack, see_first


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
        ValueError: a recipe that averages weights; the checkpoint belongs to another training.
        FloatingPointError: a loss is no longer finite.
    """
    if recipe.ema_decay is not None:
        raise ValueError("expected a recipe that averages no weights, got ema_decay; train the networks by fit")
    training = _Together(networks, dataset, recipe, seeds, checkpoint)
    penalties = []
    if isinstance(objective, Penalized):
        penalties = [copy.deepcopy(objective) for _ in networks]
    for epoch in runtime.progress(range(len(training.histories[0]), recipe.epochs), "epochs"):
        for one in penalties or [objective]:
            objectives.begin(one, training.stack, epoch, recipe.epochs, loop.steps_of_an_epoch(dataset, recipe))
        started = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(runtime.rng(seeds[0], epoch).initial_seed())
            loss = _epoch(training, dataset, objective, penalties, recipe, epoch)
        training.stack.unstack(networks)
        training.score(dataset, attack, epoch, loss, time.perf_counter() - started)
    for network, best in zip(networks, training.best, strict=True):
        network.load_state_dict(best)
    return [pandas.DataFrame(history) for history in training.histories]


class _Together:
    """The stack, its optimizer, and of each network the history and the best weights; kept after every epoch."""

    def __init__(self, networks, dataset, recipe: Recipe, seeds, checkpoint):
        self.networks, self.seeds = networks, seeds
        start = fingerprint(*(network.state_dict() for network in networks))
        identity = {"recipe": dataclasses.asdict(recipe), "seeds": [*seeds], "start": start}
        self.resumable = Resumable(checkpoint, identity, kind="training")
        for network, seed in zip(networks, seeds, strict=True):
            see_first(network, next(_batches(dataset, recipe, seed, 0))[0])
        self.stack = runtime.active().place(Stack(networks))
        self.optimizer = recipe.optimizer(self.stack)
        self.histories: list[list[dict]] = [[] for _ in networks]
        self.best: list[dict] = [{} for _ in networks]
        if state := self.resumable.load(next(self.stack.parameters()).device):
            self.stack.load_state_dict(state["last"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.histories, self.best = state["histories"], state["best"]

    def score(self, dataset, attack: Attack | None, epoch: int, loss: float, seconds: float) -> None:
        """Validate every network, remember its weights if they are the best so far, and keep everything."""
        row = {"epoch": epoch + 1, "loss": loss, "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        row["images_per_second"] = len(self.networks) * len(dataset.train.labels) / seconds
        for number, (network, history) in enumerate(zip(self.networks, self.histories, strict=True)):
            history.append(row | loop.validate(network, dataset.validation, attack))
            scores = [one.get(loop.ROBUST_ACCURACY, one["validation_accuracy"]) for one in history]
            if attack is not None:
                history[-1]["overfitting"] = overfitting.flag(scores)
            if scores[-1] is None or scores[-1] >= max(scores):
                self.best[number] = {name: one.clone() for name, one in network.state_dict().items()}
        state = {"last": self.stack.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.resumable.save(**state, best=self.best, histories=self.histories)


def _batches(dataset: data.ImageDataset, recipe: Recipe, seed: int, epoch: int):
    """The batches of one network in one epoch, as `fit` draws them."""
    options = {"shuffle": True, "augment": dataset.augment if recipe.augment else None, "least": loop.least(recipe)}
    return data.batches(*dataset.train, recipe.batch_size, rng=runtime.rng(seed, epoch), **options)


def _epoch(training: _Together, dataset, objective, penalties: list[Penalized], recipe: Recipe, epoch: int) -> float:
    """One pass over the images; the mean loss."""
    stack, policy = training.stack.train(), runtime.active()
    inner: Callable = objective.objective if penalties else objective
    batches = zip(*(_batches(dataset, recipe, seed, epoch) for seed in training.seeds), strict=True)
    steps = loop.steps_of_an_epoch(dataset, recipe)
    losses: list[Tensor] = []
    for step, parts in enumerate(batches):
        x, y = (torch.cat([part[which] for part in parts]) for which in (0, 1))
        for group in training.optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch + (step + 1) / (steps + 1))
        with policy.autocast():
            loss = stack.count * inner(stack, x, y)  # the sum of the networks' own losses
            if penalties:
                loss = loss + objective.strength * stack.penalty([one.penalty for one in penalties])
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
        losses.append(loss.detach() / stack.count)
    loop.check_finite(losses, epoch, training.resumable.path)
    return torch.stack(losses).mean().item()
