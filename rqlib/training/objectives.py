"""What training minimizes: functions (model, x, y) -> scalar loss. `named` binds their settings.

The attack inside a robust objective runs in eval mode, differentiates with respect to the images only and leaves
no gradient on the weights. The one exception is `leaky_adversarial`, which shows what goes wrong without that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import attacks
from rqlib.core import runtime
from rqlib.core.projections import Ball, Linf
from rqlib.core.vocabulary import Attack, Objective, did_you_mean
from rqlib.training.certified_objectives import CERTIFIED
from rqlib.training.noisy_objectives import NOISY


def natural(model: nn.Module, x: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy on clean images.

    With smoothing s the target of class k is ``(1 - s) [k = y] + s / K`` (Szegedy et al. 2016,
    arXiv 1512.00567).
    """
    return F.cross_entropy(model(x).float(), y, label_smoothing=label_smoothing)


def adversarial(model: nn.Module, x: Tensor, y: Tensor, *, attack: Attack, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy on attacked images only (Madry et al. 2018, arXiv 1706.06083)."""
    return natural(model, attack(model, x, y), y, label_smoothing=label_smoothing)


def mixed(model: nn.Module, x: Tensor, y: Tensor, *, attack: Attack, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the images and their attacked versions, half and half, in one forward pass."""
    both = torch.cat([x, attack(model, x, y)])
    return natural(model, both, torch.cat([y, y]), label_smoothing=label_smoothing)


def trades(
    model: nn.Module, x: Tensor, y: Tensor, *, attack: Attack, beta: float = 6.0, label_smoothing: float = 0.0
) -> Tensor:
    """``CE(f(x), y) + beta KL(f(x) || f(x'))`` (Zhang et al. 2019, arXiv 1901.08573).

    x' is found by ascent on that divergence: ``attack`` is given the network's own probabilities as soft
    labels, and the gradient of their cross-entropy is that of the divergence.
    """
    with runtime.evaluating(model), torch.no_grad():
        believed = model(x).float().softmax(1)
    attacked = attack(model, x, believed)
    clean = model(x).float()
    divergence = F.kl_div(model(attacked).float().log_softmax(1), clean.softmax(1), reduction="batchmean")
    return F.cross_entropy(clean, y, label_smoothing=label_smoothing) + beta * divergence


def leaky_adversarial(
    model: nn.Module, x: Tensor, y: Tensor, *, attack: Attack, label_smoothing: float = 0.0
) -> Tensor:
    """A known mistake, for comparison: `adversarial`, plus the loss of every iterate of the attack.

    A loop that calls ``backward`` inside the attack and does not clear the gradients before the update minimizes
    ``sum_t CE(f(x_t), y) + CE(f(x'), y)``: with T steps the update is about T + 1 times larger.
    """
    iterates: list[Tensor] = []
    watching = model.register_forward_pre_hook(lambda module, inputs: iterates.append(inputs[0].detach()))
    try:
        iterates.append(attack(model, x, y))
    finally:
        watching.remove()
    return sum(natural(model, iterate, y, label_smoothing=label_smoothing) for iterate in iterates)


@dataclass(frozen=True)
class Penalized:
    """An objective plus ``strength * penalty(model)``.

    Attributes:
        objective: (model, x, y) -> loss.
        penalty: (model) -> scalar, such as `defenses.penalty` makes.
        strength: factor of the penalty, at least 0.
    """

    objective: Objective
    penalty: Callable[[nn.Module], Tensor]
    strength: float

    @property
    def keep(self) -> str:
        """Which epoch `fit` keeps: as the objective says."""
        return getattr(self.objective, "keep", "best")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.objective(model, x, y) + self.strength * self.penalty(model)

    def initialize(self, model: nn.Module) -> None:
        """Give a new network the weights that the objective asks for."""
        initialize(model, self.objective)

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int, steps: int) -> None:
        """Called by `fit`: what objective and penalty remember is forgotten, so that a resumed training is the same."""
        begin(self.objective, model, epoch, epochs, steps)
        getattr(self.penalty, "restart", lambda: None)()


@dataclass(eq=False)
class Ramped:
    """A robust objective whose attack begins with no ball and reaches its full radius during the training.

    At the time t, in epochs, the radius is ``min(1, t / (fraction epochs))`` times the full one. Without this a new
    network may learn nothing from a large ball (as in certified training: Gowal et al. 2018, arXiv 1810.12715).

    Attributes:
        made: share of the full radius -> objective.
        fraction: share of the training in which the radius grows, above 0 and at most 1.
    """

    made: Callable[[float], Objective]
    fraction: float
    _when: tuple[int, int, int] = field(default=(0, 1, 1), init=False)  # epoch, epochs, steps of an epoch
    _step: int = field(default=0, init=False)

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"expected the radius to grow in a share of the epochs in (0, 1], got {self.fraction}")

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int, steps: int) -> None:
        """Called by `fit` before every epoch, so that the radius depends on epoch and step alone."""
        self._when, self._step = (epoch, epochs, steps), 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        epoch, epochs, steps = self._when
        share = min(1.0, (epoch + self._step / steps) / (self.fraction * epochs))
        self._step += 1
        return self.made(share)(model, x, y)


def begin(objective: Objective, model: nn.Module, epoch: int, epochs: int, steps: int) -> None:
    """Tell an objective with a method ``begin_epoch`` which epoch begins (from 0), of how many, and its steps."""
    getattr(objective, "begin_epoch", lambda *_: None)(model, epoch, epochs, steps)


def penalized(objective: Objective, penalty: Callable[[nn.Module], Tensor] | None, strength: float) -> Objective:
    """The objective with a penalty on the weights; itself if there is none (None, or a strength of 0).

    Raises:
        ValueError: a negative strength.
    """
    if not strength >= 0:
        raise ValueError(f"expected a penalty strength >= 0, got {strength}")
    return objective if penalty is None or strength == 0 else Penalized(objective, penalty, strength)


ROBUST = {
    "adversarial": adversarial,
    "n_fgsm": adversarial,
    "mixed": mixed,
    "trades": trades,
    "leaky_adversarial": leaky_adversarial,
}
"""Name -> objective that attacks the images it trains on; ``n_fgsm`` attacks them by one noisy step."""

OBJECTIVES = {"natural": natural} | NOISY | ROBUST


def named(name: str, *, attack: Attack | None = None, **settings) -> Objective:
    """An objective by name, with its settings bound; ``attack`` is given to those in `ROBUST` only.

    Those in `certified_objectives.CERTIFIED`, which minimize a bound of the loss, need the setting ``epsilon``.

    Raises:
        ValueError: unknown name; a robust objective without an attack.
    """
    if name in CERTIFIED:
        return CERTIFIED[name](**settings)
    if name not in OBJECTIVES:
        raise ValueError(did_you_mean("objective", name, OBJECTIVES | CERTIFIED))
    if name not in ROBUST:
        return partial(OBJECTIVES[name], **settings)
    if attack is None:
        raise ValueError(f"expected an attack for the objective {name!r}, got none; make one by attacks.named")
    return partial(ROBUST[name], attack=attack, **settings)


def inner_attack(name: str, *, ball: Ball, step_size: float, steps: int) -> Attack:
    """The attack that makes the images a robust objective trains on: PGD, of which it is given the last iterate.

    ``n_fgsm`` is given the images of one noisy step instead (`attacks.noisy_fgsm`), which costs about as much as two
    natural trainings; whether it fails against PGD, `overfitting.flag` tells.

    Args:
        ball, step_size, steps: of PGD, the first two in pixels. One noisy step needs the ball alone, an L-infinity one.
    """
    if name == "n_fgsm":
        return partial(attacks.noisy_fgsm, ball=ball)
    return attacks.named("pgd", ball=ball, step_size=step_size, steps=steps, best=False)


def robust(name: str, *, epsilon: float, step_size: float, steps: int, **settings) -> tuple[Objective, Attack | None]:
    """An objective by name that trains against PGD, and the attack under which `fit` scores validation images.

    The objective trains on the images of its `inner_attack`; the attack that scores stops for each image as soon as it
    is misclassified. Those in `CERTIFIED` are given the ball alone, and are scored under PGD, too. For others that
    attack no images, such as ``natural``, the attack is None.

    Args:
        epsilon, step_size, steps: of PGD in an L-infinity ball, the first two in pixels.
        settings: of the objective, for example ``label_smoothing``.

    Raises:
        ValueError: unknown name; a radius outside [0, 1].
    """
    climb = {"ball": Linf(epsilon), "step_size": step_size, "steps": steps}
    settings |= {"epsilon": epsilon} if name in CERTIFIED else {}
    objective = named(name, attack=inner_attack(name, **climb), **settings)
    return objective, attacks.named("pgd", active_set=True, **climb) if name in ROBUST | CERTIFIED else None


def initialize(model: nn.Module, objective: Objective) -> nn.Module:
    """Give a new network the random weights that an objective asks for, in place, and return it.

    Most ask for none. Those for certification by boxes do (`certified_objectives.initialize`).
    """
    getattr(objective, "initialize", lambda _: None)(model)
    return model
