"""What the experiments of pruning have in common: network, images, objectives, epochs, attacks, files of states."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import nn

from rqlib import attacks, models, training
from rqlib.core import runtime
from rqlib.core.projections import Ball, Linf
from rqlib.core.vocabulary import ImageSpec, Objective, did_you_mean
from rqlib.data import ImageDataset
from rqlib.models import checkpoints
from rqlib.pruning.algorithms import Phase
from rqlib.training import objectives
from rqlib.training.certified_objectives import CERTIFIED
from rqlib.training.recipes import Recipe

PHASES = ("prune", "finetune", "pretrain")
SCRATCH = "scratch"
"""The control: a narrower network with as many weights as stay, trained from the beginning."""
NEW = ("pretrain", SCRATCH)
"""Phases that begin with new networks."""


@dataclass(frozen=True)
class Plan:
    """How the experiments of this chapter train and score their networks.

    Attributes:
        images: training images, validation images that choose the best epoch, and test images that are all scored;
            `ImageDataset.take` limits them.
        model: name of the network that is pruned, as `models.build` takes it. Networks that are trained from scratch
            are of this kind.
        ball: the images of an attack stay in it, in training and in scoring.
        objectives: names of what ``prune`` (choosing the weights) and ``finetune`` (training the rest) minimize.
        epochs: lengths of the phases ``prune``, ``finetune`` and ``pretrain``.
        attack_steps: steps of PGD in training and on the validation images, each ``2.5 epsilon / steps`` long. The
            objective ``n_fgsm`` trains on one noisy step whatever they are.
        ramp: share of the epochs of a new network in which the radius of the attack that it is trained under grows
            from 0; 0: it is the full one from the start. Phases that go on with a network have the full radius.
        era: ``steps`` and ``restarts`` of the PGD that scores, for `measures.era`.
        width: multiplier of the network's channel counts.
        spec: of the images, with the normalization of the network; None: that of the images.
        options: of the network's constructor.
        changes: how it was changed after it was made (`models.checkpoints.CHANGES`).
        pretrained_for: the objective that the network was trained for, if it is known.
        structure: what is removed: weights, columns, filters or 2:4.
        seed: for the order of images, augmentation and the weights of new networks.
        folder: where states are kept, from which an interrupted experiment goes on; None keeps nothing.

    Raises:
        ValueError: unknown objective, or one that needs an L-infinity ball and has another; not exactly these phases;
            a ramp outside [0, 1].
    """

    images: ImageDataset
    model: str
    ball: Ball
    objectives: Mapping[str, str]
    epochs: Mapping[str, int]
    attack_steps: int = 10
    ramp: float = 0.0
    era: Mapping[str, int] = field(default_factory=lambda: {"steps": 50, "restarts": 10})
    width: float = 1.0
    spec: ImageSpec | None = None
    options: Mapping = field(default_factory=dict)
    changes: Mapping = field(default_factory=dict)
    pretrained_for: str | None = None
    structure: str = "weights"
    seed: int = 0
    folder: str | Path | None = None

    def __post_init__(self):
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"expected ramp in [0, 1], as a share of the epochs of a new network, got {self.ramp}")
        for name, expected in (("objectives", PHASES[:2]), ("epochs", PHASES)):
            found = getattr(self, name)
            if found.keys() != set(expected):
                raise ValueError(f"expected {name} of {' and '.join(expected)}, got {', '.join(found) or 'none'}")
        for goal in self.objectives.values():
            if goal not in objectives.OBJECTIVES | CERTIFIED:
                raise ValueError(did_you_mean("objective", goal, objectives.OBJECTIVES | CERTIFIED))
            if goal in (*CERTIFIED, "n_fgsm") and not isinstance(self.ball, Linf):
                raise ValueError(f"expected an L-infinity ball for the objective {goal}, got {self.ball}")

    @property
    def origin(self) -> dict:
        """Columns that say where a row comes from: images, model, width, pretrained_for."""
        columns = {"model": self.model, "width": self.width, "pretrained_for": self.pretrained_for}
        return {"images": self.images.title, **columns}

    def fresh(self, objective: Objective | None = None) -> nn.Module:
        """A new network of the kind that is pruned, with the plan's random weights, as an objective wants them."""
        runtime.seed_everything(self.seed)
        made = models.build(self.model, self.made_for, width=self.width, options=self.options)
        return self.begun(made, objective)

    def begun(self, made: nn.Module, objective: Objective | None) -> nn.Module:
        """A new network with the weights that an objective asks for, changed as the network that is pruned was."""
        return checkpoints.changed(training.initialize(made, objective), self.changes)

    @property
    def made_for(self) -> ImageSpec:
        """The images, with the normalization of the network."""
        return self.spec or self.images.spec

    def phase(self, kind: str, folder: str, *, objective: str | None = None) -> Phase:
        """One phase of training. Its best epoch is the most accurate, under attack if the objective has an attack.

        Args:
            kind: as for `recipe`.
            folder: below the plan's folder; two trainings with equal recipes and networks need different ones.
            objective: its name; by default that of ``prune`` or ``finetune`` of the plan. One that bounds the loss in
                a ball grows the ball only for new networks, and keeps the last epoch.
        """
        goal = objective or self.objectives["prune" if kind in ("prune", "admm") else "finetune"]
        scoring = attacks.named("pgd", active_set=True, **self._climb())
        return Phase(
            self.images,
            self._objective(goal, new=kind in NEW),
            self.recipe(kind, certified=goal in CERTIFIED),
            attack=scoring if goal in objectives.ROBUST | CERTIFIED else None,
            seed=self.seed,
            folder=self.state(folder),
        )

    def finetuning(self, folder: str) -> Phase | None:
        """The phase that trains the remaining weights; None if the plan has no epochs for it. Folder as for `phase`."""
        return self.phase("finetune", folder) if self.epochs["finetune"] else None

    def recipe(self, kind: str, *, certified: bool = False) -> Recipe:
        """SGD with momentum 0.9, weight decay 1e-4 and a cosine schedule, for at least one epoch.

        The learning rate is 0.1 for scores (``prune``) and for new networks (``pretrain``, ``scratch``), and 0.01 for
        weights that are trained already (``finetune``, and ``admm``, which is ADMM's way of pruning). Training from
        ``scratch`` takes the epochs of all phases together.

        For an objective that bounds the loss (``certified``) it is Adam, without weight decay, at the learning rates
        5e-4 for weights and 5e-3 for scores, whatever the method.
        """
        lengths = {**self.epochs, "admm": self.epochs["prune"], "scratch": sum(self.epochs.values())}
        base = training.recipe("finetune" if kind in ("finetune", "admm") else "hydra")
        base = dataclasses.replace(base, epochs=max(lengths[kind], 1))
        if not certified:
            return base
        lr = 5e-3 if kind == "prune" else 5e-4
        return dataclasses.replace(base, optimizer_name="adam", lr=lr, weight_decay=0.0, clip_norm=10.0)

    def _objective(self, goal: str, *, new: bool) -> Objective:
        if goal not in CERTIFIED:
            ramped = new and self.ramp > 0 and goal in objectives.ROBUST
            return objectives.Ramped(partial(self._attacked, goal), self.ramp) if ramped else self._attacked(goal, 1.0)
        made = training.objective(goal, epsilon=self.ball.epsilon)
        return made if new else made.at_full_radius()

    def _attacked(self, goal: str, share: float) -> Objective:
        """An objective by name; its attack, if it has one, has this share of the full radius."""
        return training.objective(goal, attack=objectives.inner_attack(goal, **self._climb(share)))

    def state(self, name: str) -> Path | None:
        """Path of a file or folder of states below the plan's folder; None if nothing is kept."""
        return None if self.folder is None else Path(self.folder) / name

    def _climb(self, share: float = 1.0) -> dict:
        """Ball, step size and steps of PGD, with this share of the full radius."""
        ball = dataclasses.replace(self.ball, epsilon=share * self.ball.epsilon)
        return {"ball": ball, **attacks.pace(ball, self.attack_steps)}
