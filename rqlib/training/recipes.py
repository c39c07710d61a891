"""How long a network is trained, at which learning rate and with which regularization: `Recipe`."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from rqlib.core.vocabulary import did_you_mean


@dataclass(frozen=True)
class Recipe:
    """Everything about an optimization except the network, the data and the objective.

    The learning rate at the time t in epochs is ``lr * SCHEDULES[schedule](t / epochs)``; with ``warm_up`` it
    is multiplied by t during the first epoch. ``optimizer_name`` is ``sgd`` or ``adam``, which needs no momentum.
    ``clip_norm``: gradients of a larger L2 norm are shortened to it. `dataclasses.replace` changes a setting.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    warm_up: bool = False
    label_smoothing: float = 0.0
    augment: bool = True
    ema_decay: float | None = None
    optimizer_name: str = "sgd"
    clip_norm: float | None = None

    def __post_init__(self):
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"expected epochs >= 0 and batch_size >= 1, got {self.epochs} and {self.batch_size}")
        if self.lr <= 0:
            raise ValueError(f"expected lr > 0, got {self.lr}")
        if self.schedule not in SCHEDULES:
            raise ValueError(did_you_mean("schedule", self.schedule, SCHEDULES))
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"expected clip_norm > 0, or None, got {self.clip_norm}")
        if self.optimizer_name not in OPTIMIZERS:
            raise ValueError(did_you_mean("optimizer", self.optimizer_name, OPTIMIZERS))

    def lr_at(self, time: float) -> float:
        """The learning rate at a time in epochs, 0 <= time < epochs."""
        warm_up = min(time, 1.0) if self.warm_up else 1.0
        return self.lr * warm_up * SCHEDULES[self.schedule](time / self.epochs)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of those parameters that require a gradient."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.optimizer_name == "adam":
            return torch.optim.Adam(trained, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(
            trained,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )


def _constant(done: float) -> float:
    return 1.0


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _triangle(done: float) -> float:
    """Linear up to the peak at 20% of the epochs, linear down to 0 (one-cycle; Smith 2018, arXiv 1803.09820)."""
    return min(done / 0.2, (1 - done) / 0.8)


def _falling(factor: float, *milestones: float) -> Callable[[float], float]:
    """Multiplied by a factor after each of these fractions of the epochs."""
    return lambda done: factor ** sum(done >= milestone for milestone in milestones)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "steps": _falling(0.2, 0.3, 0.6, 0.8),  # epochs 60, 120 and 160 of 200
    "cosine": _cosine,
    "triangle": _triangle,
    "late": _falling(0.2, 0.75, 0.875),  # 120 and 140 of 160
    "atmc_dense": _falling(0.1, 0.4, 0.6, 0.75),  # epochs 80, 120 and 150 of 200
    "atmc_weights": _falling(0.1, 0.15, 0.3, 0.45, 0.6),  # 30, 60, 90 and 120 of 200
    "atmc_factors": _falling(0.1, 0.3, 0.4, 0.6),  # 60, 80 and 120 of 200
}

OPTIMIZERS = ("sgd", "adam")

_FAST = {"nesterov": True, "weight_decay": 5e-4, "schedule": "triangle", "label_smoothing": 0.1}
_CERTIFIED = {"schedule": "late", "optimizer_name": "adam", "clip_norm": 10.0}  # Shi et al. 2021, arXiv 2103.12270
RECIPES = {
    "none": Recipe(0),
    "seed001": Recipe(200, lr=0.1, nesterov=True, weight_decay=5e-4, schedule="steps", warm_up=True),
    "seed003": Recipe(10, batch_size=100, lr=1e-3, augment=False),
    "hydra": Recipe(100, lr=0.1, weight_decay=1e-4, schedule="cosine"),
    "finetune": Recipe(100, lr=0.01, weight_decay=1e-4, schedule="cosine"),
    "certified": Recipe(160, lr=5e-4, **_CERTIFIED),
    "certified_quick": Recipe(40, lr=1e-3, **_CERTIFIED),
    "fast": Recipe(24, lr=0.2, **_FAST),
    "quick": Recipe(16, lr=0.1, **_FAST),
}


def recipe(name: str, *, epochs: int = 0) -> Recipe:
    """A recipe by name.

    Args:
        name: of `RECIPES`; ``none`` trains nothing, so that a network from elsewhere is scored as it is.
        epochs: how many epochs to train; 0 keeps the recipe's own number.

    Raises:
        ValueError: unknown name; a negative number of epochs; epochs for ``none``.
    """
    if name not in RECIPES:
        raise ValueError(did_you_mean("recipe", name, RECIPES))
    if epochs and not RECIPES[name].epochs:
        raise ValueError(f"recipe {name!r} trains nothing: expected epochs 0, got {epochs}; choose another recipe")
    return dataclasses.replace(RECIPES[name], epochs=epochs or RECIPES[name].epochs)
