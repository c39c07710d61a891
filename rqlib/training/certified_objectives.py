"""Objectives of networks that are to be certified by boxes or by linear bounds.

They train on bounds of the margins in an L-infinity ball. The ball's radius grows during the training, so they are
objects that `fit` tells which epoch begins, and that tell it to keep the last epoch (``keep``). A network that is
trained from new weights by IBP needs weights that fit it: `Certified.initialize`.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from rqlib import attacks
from rqlib.certification import boxes, linear_bounds, live, programs
from rqlib.certification.boxes import Box
from rqlib.certification.programs import Step
from rqlib.core import layers, runtime
from rqlib.core.projections import Linf
from rqlib.core.resumable import fingerprint
from rqlib.core.vocabulary import Attack
from rqlib.defenses.noise import is_randomized

_TOLERANCE = 0.5  # of Shi et al.'s regularizers
_ATTACK_STEPS = 8


def smoothed_ramp(time: float, start: float, end: float) -> float:
    """From 0 at ``start`` to 1 at ``end``: ``a (t - start)^4`` in the first quarter, then linear with the same slope.

    Source: Shi et al. 2021, arXiv 2103.12270, after Xu et al. 2020.
    """
    if time <= start:
        return 0.0
    if time >= end:
        return 1.0
    share = (time - start) / (end - start)
    steep = 1 / 0.05078125  # so that value and slope agree at 1/4: 4 a m^3 (1 - m) + a m^4 = 1
    return steep * share**4 if share <= 0.25 else 1 - (1 - share) * 4 * steep * 0.25**3


@dataclass(eq=False)
class Certified:
    """Cross-entropy of the logits ``-(lower bounds of the margins)`` over a ball whose radius grows.

    ``certified_loss = CE((0 at y, -margin_j elsewhere), y)``, at the radius ``ramp(t) factor epsilon``. Until the ramp
    begins it is the plain cross-entropy. BatchNorm in train mode follows the clean images.

    Attributes:
        epsilon: radius for which the network will be certified, in pixels.
        factor: the network is trained for a radius so many times larger.
        ramp: begin and end of the growth, as fractions of the training; None: full radius from the first step, for
            networks that are fine-tuned.
        bound: ``ibp``, or ``crown_ibp``, whose margins are mixed with those of IBP: ``b CROWN-IBP + (1 - b) IBP``,
            where b falls from 1 to 0 while the radius grows.
        shi: initialization and regularizer of Shi et al. 2021 (arXiv 2103.12270), made for short trainings by IBP.
        clean: final weight of the cross-entropy of clean images, which falls from 1 (Gowal et al. 2018,
            arXiv 1810.12715: 0.5); 0 leaves it out from the start.
        part: boxes have the radius ``part`` times the ball's and lie around images that PGD finds in the rest of the
            ball (SABR: Müller et al. 2023, arXiv 2210.04871). With 1 they are the ball.
        attacked: weight of the cross-entropy of images under PGD, beside the certified loss, which gets the rest
            (MTL-IBP: De Palma et al. 2024, arXiv 2305.13991).

    Raises:
        ValueError: a radius or share outside [0, 1]; an unknown bound.
    """

    epsilon: float
    factor: float = 1.1
    ramp: tuple[float, float] | None = (0.0125, 0.5125)
    bound: str = "ibp"
    shi: bool = True
    clean: float = 0.0
    part: float = 1.0
    attacked: float = 0.0
    label_smoothing: float = 0.0
    keep: str = field(default="last", init=False)
    _when: tuple[int, int, int] | None = field(default=None, init=False)  # epoch, epochs, steps of an epoch
    _step: int = field(default=0, init=False)

    def __post_init__(self):
        for name in ("epsilon", "clean", "part", "attacked"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in [0, 1], got {getattr(self, name)}")
        if self.bound not in ("ibp", "crown_ibp"):
            raise ValueError(f"expected bound ibp | crown_ibp, got {self.bound!r}")
        if self.ramp is not None and not 0 <= self.ramp[0] <= self.ramp[1] <= 1:
            raise ValueError(f"expected ramp (begin, end) as fractions of the training, or None, got {self.ramp}")

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int, steps: int = 1) -> None:
        """Called by `fit` before every epoch, counted from 0. The radius depends on epoch and step alone.

        Args:
            steps: batches of an epoch, if they are known; else the radius is the same in all of them.
        """
        self._when, self._step = (epoch, epochs, steps), 0

    def at_full_radius(self) -> "Certified":
        """The same from the first step on at the full radius, where only boxes count: for trained networks."""
        return dataclasses.replace(self, ramp=None)

    def initialize(self, model: nn.Module) -> None:
        """Give a new network the weights that this objective needs (`initialize`), in place; none if ``shi`` is off."""
        if self.shi:
            initialize(model)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        share = self._share()
        self._step += 1
        radius = min(self.factor * self.epsilon, 1.0) * share
        with torch.autocast(x.device.type, enabled=False):  # bounds in bfloat16 would be none
            if radius == 0:
                return self._entropy(model(x).float(), y)
            return self._loss(model, x, y, radius, share)

    def _share(self) -> float:
        """How much of the full radius is reached."""
        if self.ramp is None or self._when is None:
            return 1.0
        epoch, epochs, steps = self._when
        now = epoch + min(self._step, steps - 1) / steps
        return smoothed_ramp(now, *(epochs * end for end in self.ramp))

    def _loss(self, model: nn.Module, x: Tensor, y: Tensor, radius: float, share: float) -> Tensor:
        network = live.of(model, x)
        clean = network.logits(model, x) if self.clean or model.training and any(layers.batchnorms(model)) else None
        center = x
        if self.part < 1:
            center = _pgd((1 - self.part) * radius)(model, x, y)
        box = boxes.of_images(center, self.part * radius)
        found = boxes.propagate(network.steps, box)
        loss = self._entropy(-self._margins(network.steps, found, y, share).scatter(1, y[:, None], 0.0), y)
        if self.attacked:
            attacked = self._entropy(model(_pgd(radius)(model, x, y)).float(), y)
            loss = (1 - self.attacked) * loss + self.attacked * attacked
        if self.clean:
            weight = 1 - share * (1 - self.clean)
            loss = weight * self._entropy(clean, y) + (1 - weight) * loss
        return loss + 0.5 * (1 - share) * regularizer(network.steps, found) if self.shi and share < 1 else loss

    def _margins(self, steps: list[Step], found: list[Box], y: Tensor, share: float) -> Tensor:
        margins = boxes.margins(steps, found, y)
        if self.bound == "ibp" or share == 1:
            return margins
        return (1 - share) * linear_bounds.margins(steps, found, y) + share * margins

    def _entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)


@dataclass(eq=False)
class MixTrain:
    """``CE(f(x), y) + w certified_loss`` of a few images of the batch, bounded by symbolic intervals.

    Symbolic intervals are `certification.symbolic`. In a step this happens with the probability ``chance``, else the
    loss is the first term. The radius grows linearly during the first quarter of the training; then w grows, from 0.1
    by the factor 2.5 with every twelfth of the training, up to 50. Source: Wang et al. 2018, arXiv 1811.02625.

    Attributes:
        epsilon: radius in pixels.
        images: so many of each batch are bounded, drawn with replacement: 5 for small networks, 1 for large ones.
        chance: probability of a step with bounds.
        growing: the radius grows.

    Raises:
        ValueError: a radius outside [0, 1].
    """

    epsilon: float
    images: int = 5
    chance: float = 0.8
    label_smoothing: float = 0.0
    growing: bool = True
    keep: str = field(default="last", init=False)
    _when: tuple[int, int] | None = field(default=None, init=False)

    def __post_init__(self):
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"expected epsilon in [0, 1], got {self.epsilon}")

    def at_full_radius(self) -> "MixTrain":
        """The same from the first step on at the full radius; the weight of the bounds grows in any case."""
        return dataclasses.replace(self, growing=False)

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int, steps: int = 1) -> None:
        """Called by `fit` before every epoch, counted from 0."""
        self._when = epoch, epochs

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        share = 1.0 if self._when is None else (self._when[0] + 1) / self._when[1]
        radius = self.epsilon * (min(4 * share, 1.0) if self.growing else 1.0)
        weight = min(0.1 * 2.5 ** math.floor(12 * max(share - 0.25, 0)), 50)
        with torch.autocast(x.device.type, enabled=False):
            network = live.of(model, x)
            loss = F.cross_entropy(network.logits(model, x), y, label_smoothing=self.label_smoothing)
            if torch.rand(()) >= self.chance:
                return loss
            some = torch.randint(len(x), (self.images,)).to(x.device)
            found = linear_bounds.tightened(network.steps, boxes.of_images(x[some], radius), slope="same")
            margins = linear_bounds.margins(network.steps, found, y[some], slope="same")
            logits = -margins.scatter(1, y[some][:, None], 0.0)
            return loss + weight * F.cross_entropy(logits, y[some], label_smoothing=self.label_smoothing)


def regularizer(steps: list[Step], found: list[Box]) -> Tensor:
    """Shi et al.'s two: boxes should not grow from layer to layer, and ReLUs should be as often on as off.

    Means over the ReLUs of ``relu(t - r_0 / r_i) / t``, where r are mean radii of the image and of a ReLU's input, and
    of ``relu(t - q) / t`` for two ratios q <= 1, of the means and of the variances of the centers of units that are on
    for certain against those that are off for certain; t is 1/2.
    """
    inputs = [found[step.sources[0]] for step in steps if step.kind in (programs.RELU, programs.CLIP)]
    first = (found[programs.start(steps)].high - found[programs.start(steps)].low).mean()
    losses = []
    for low, high in inputs:
        growth = first / (high - low).mean().clamp(min=1e-12)
        center, on, off = (low + high) / 2, low > 0, high < 0
        spread = (center - center.mean()).square()
        ratios = (center * on).sum() / -(center * off).sum(), (spread * on).sum() / (spread * off).sum()
        balance = sum(_below(torch.minimum(q, 1 / q.clamp(min=1e-12))) for q in ratios)
        losses.append(_below(growth) + (balance if balance.isfinite() else 0.0))
    return sum(losses) / max(len(losses), 1)


def _below(ratio: Tensor) -> Tensor:
    return F.relu(_TOLERANCE - ratio) / _TOLERANCE


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Weights ``N(0, sqrt(2 pi) / fan_in)`` for every layer but the last, in place, so that boxes keep their size.

    Half of that right after a sum of branches. The random numbers depend on the weights that the network has, so that
    networks of different seeds stay different. Source: Shi et al. 2021, arXiv 2103.12270.

    Raises:
        ValueError: weights are parametrized, the network draws random numbers, or torch.fx cannot trace it.
    """
    if is_randomized(model):
        raise ValueError("expected a network that draws no random numbers: initialize it before noise is added to it")
    modules = dict(model.named_modules(remove_duplicate=False))
    rng = runtime.rng(int(fingerprint(model.state_dict())[:16], 16))
    nodes = [node for node in layers.trace(model).nodes if layers.is_weighted(modules.get(node.target, model))]
    for node in nodes[:-1]:
        layer = modules[node.target]
        if is_parametrized(layer):
            raise ValueError(f"expected plain weights, but those of {node.target} are parametrized: initialize first")
        deviation = math.sqrt(2 * math.pi) / layer.weight[0].numel() / (2 if _behind_sum(node, modules) else 1)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) * deviation)


def _behind_sum(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether only ReLU and BatchNorm lie between a sum and a layer."""
    (source, *_) = node.all_input_nodes
    between = isinstance(modules.get(source.target), (nn.ReLU, nn.Identity, *layers.NORMALIZATIONS))
    if source.op == "call_module" and between:
        return _behind_sum(source, modules)
    name = getattr(source.target, "__name__", source.target)
    return _behind_sum(source, modules) if name == "relu" else name in ("add", "iadd", "add_")


def _pgd(radius: float) -> Attack:
    ball = Linf(radius)
    return attacks.named("pgd", ball=ball, **attacks.pace(ball, _ATTACK_STEPS), best=False)


CERTIFIED = {
    "ibp": Certified,
    "ibp_plain": partial(Certified, shi=False),
    "crown_ibp": partial(Certified, bound="crown_ibp"),
    "crown_ibp_plain": partial(Certified, bound="crown_ibp", shi=False),
    "sabr": partial(Certified, part=0.4),
    "mtl_ibp": partial(Certified, attacked=0.5),
    "mixtrain": MixTrain,
}
"""Name -> what makes the objective; it takes the radius ``epsilon``, in pixels."""
