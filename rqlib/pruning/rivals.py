"""Eight ways to the same size: pruned, of low rank, or pruned, factorized and quantized in one training (ATMC).

All start from the same network and train for the same number of epochs, as a `Plan` says:

- ``pretrain``: the dense network, naturally for NAP and adversarially for all others.
- ``prune`` and ``finetune``: what is left of it. ATMC first projects the weights to few nonzeros (Al0), then, in
  ``finetune``, factors of them (ATMC-32). ATMC-8 spends the last three sevenths of ``finetune`` on few distinct values.
  All but DA begin it at their size, with BatchNorm statistics of what is left.

The chain of the paper is 200, 200 and 350 epochs long, and its learning rates fall at milestones (`STAGES`). The short
form has fewer epochs, and its learning rates fall along a cosine. Source: Gui et al. 2019, arXiv 1902.03538.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from pandas import DataFrame
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import parametrizations, projections, runtime
from rqlib.core.entry import classifier
from rqlib.core.vocabulary import Objective, did_you_mean
from rqlib.defenses.quantized_weights import RangeQuantized
from rqlib.pruning import constraints, factors, low_rank, masks, same_size, statistics
from rqlib.pruning.algorithms import Phase
from rqlib.pruning.constraints import Codebooks
from rqlib.pruning.evaluation import Networks
from rqlib.pruning.plans import Plan
from rqlib.training import objectives
from rqlib.training.recipes import Recipe

STAGES = {
    "dense": (0.05, "atmc_dense"),
    "weights": (0.01, "atmc_weights"),
    "factors": (0.005, "atmc_factors"),
    "values": (0.005, "constant"),
}
"""What is trained -> its learning rate, and the schedule of the paper's code."""

FORMS = ("short", "paper")


def joint(
    dense: nn.Module,
    rivals: Sequence[str],
    ratios: Sequence[float],
    plan: Plan,
    *,
    compressions: Sequence[float] = (),
    form: str = "short",
) -> Networks:
    """Compress a network by every rival to every size, each under the same attack and for the same number of epochs.

    A network of the ratio r has at most ``floor(r N)`` nonzeros, of N weights of convolutions and linear layers. The
    attack has a random start and meets the network in eval mode; NAP meets none. The best epoch is that of the highest
    accuracy under attack (NAP: without) on validation images; only ATMC with a codebook keeps the last.

    Args:
        dense: the network that all start from; new weights for the chain of the paper. It stays as it is.
        rivals: of `RIVALS`; none of them for no networks, whatever the plan.
        ratios: nonzeros as fractions of the weights, above 0 and at most 1.
        plan: images, attack, epochs, objective (``adversarial``, or ``mixed`` for half clean images, half attacked
            ones) and where states are kept. Its structure is not used.
        compressions: true ones, bytes of the dense file / bytes of the compressed one: each rival gets the number of
            nonzeros whose file is so small (`kept_at`).
        form: ``short``, learning rates that fall along a cosine; or ``paper``, at the milestones of its code.

    Returns:
        (rival, ratio) -> network, whose weights are plain, or factorized (`factors.factorized`). DA, which is not
        compressed, has the ratio 1. ALR is left out, with a warning, where rank 1 in all layers is too much already.
        Warnings name the layers that are left alone: convolutions with groups, those that share a weight, transposed
        convolutions, and those with a forward pass of their own.

    Raises:
        ValueError: unknown rival or form; a ratio outside (0, 1] or one that keeps nothing; a compression that is not
            above 1 or too large; the plan's objective of fine-tuning attacks no images, or it has fewer than 1, 1 and
            2 epochs; the network is pruned already, or has parametrized weights; the plan's folder holds states of
            another network.
        AssertionError: a network does not keep to its number of nonzeros or of distinct values.
    """
    if not rivals:
        return {}
    dense = classifier(dense)
    check_joint(dense, rivals, ratios, plan, compressions=compressions, form=form)
    asked = _asked(dense, rivals, ratios, compressions)
    masks.check_new(dense)
    factors.say_left_alone(dense)
    bench, found = _Bench(dense, plan, form), {}
    for rival, sizes in asked.items():
        bits = RIVALS[rival].bits
        for ratio, count in sizes.items():
            network = RIVALS[rival].make(bench, _Size(f"{rival}-{ratio}", ratio, count, bits))
            if network is not None:
                title = f"{rival} at the ratio {ratio}"
                found[rival, ratio] = constraints.check(network, count=count, bits=bits, title=title)
    return found


def check_joint(
    dense: nn.Module,
    rivals: Sequence[str],
    ratios: Sequence[float],
    plan: Plan,
    *,
    compressions: Sequence[float] = (),
    form: str = "short",
) -> None:
    """Raise the ValueError with which `joint` would refuse these rivals, sizes and plan, before anything is trained.

    Arguments as for `joint`; of the network only the shapes of its layers matter. What is wrong with its weights, or
    with states in the plan's folder, only `joint` tells.
    """
    if not rivals:
        return
    if form not in FORMS:
        raise ValueError(f"expected form {' | '.join(FORMS)}, got {form!r}")
    _check_plan(plan)
    _asked(classifier(dense), rivals, ratios, compressions)


def kept_at(dense: nn.Module, rivals: Sequence[str], compressions: Sequence[float]) -> DataFrame:
    """The ratio of nonzeros at which each rival has each true compression (`same_size.nonzeros`).

    Columns: rival, compression, kept (the ratio, to four digits). DA, which is not compressed, has no rows. Nor has a
    rival whose file would be smaller still with all of its nonzeros.

    Raises:
        ValueError: unknown rival; a compression that is not above 1 or too large.
    """
    rows = []
    for rival in rivals:
        if rival not in RIVALS:
            raise ValueError(did_you_mean("rival", rival, RIVALS))
        known, size = RIVALS[rival], sum(weight.numel() for weight in factors.tensors(dense).values())
        for compression in compressions if rival != DENSE else ():
            count = same_size.nonzeros(dense, compression, bits=known.used_bits or known.bits, indexed=known.indexed)
            if count < size:
                rows.append((rival, compression, float(f"{count / size:.4g}")))
    return DataFrame(rows, columns=["rival", "compression", "kept"])


def _asked(
    dense: nn.Module, rivals: Sequence[str], ratios: Sequence[float], compressions: Sequence[float]
) -> dict[str, dict[float, int]]:
    """Rival -> ratio -> number of nonzeros, of all sizes that it is to be compressed to."""
    size, more = sum(weight.numel() for weight in factors.tensors(dense).values()), kept_at(dense, rivals, compressions)
    asked = {rival: [*ratios, *more.kept[more.rival == rival]] if rival != DENSE else [1.0] for rival in rivals}
    return {rival: {ratio: constraints.budget(ratio, size) for ratio in kept} for rival, kept in asked.items()}


@dataclass(frozen=True)
class Distilled:
    """An objective whose labels are half the true ones and half the probabilities that a teacher gives clean images.

    The cross-entropy with such labels is the mean of the usual one and of that from the teacher (Hinton et al. 2015,
    arXiv 1503.02531).
    """

    objective: Objective
    teacher: nn.Module

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with runtime.evaluating(self.teacher), torch.no_grad():
            believed = self.teacher(x).float().softmax(1)
        return self.objective(model, x, (believed + F.one_hot(y, believed.shape[1])) / 2)


@dataclass(frozen=True)
class _Size:
    """What a rival is asked for: ``count`` nonzeros, and ``bits`` for each value (None: 32)."""

    title: str
    ratio: float
    count: int
    bits: int | None


class _Bench:
    """What the rivals of a comparison share: the network they start from, the plan, and stages trained already."""

    def __init__(self, start: nn.Module, plan: Plan, form: str):
        self.start, self.plan, self.form, self._made = start, plan, form, {}

    @property
    def epochs(self) -> int:
        """How long every rival is trained after its dense network."""
        return self.plan.epochs["prune"] + self.plan.epochs["finetune"]

    def once(self, stage: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A stage that several rivals go on from; it is trained once."""
        if stage not in self._made:
            self._made[stage] = make()
        return self._made[stage]

    def dense(self, objective: str | None = None) -> nn.Module:
        """The start, trained for an objective; by default for that of the plan."""
        goal = objective or self.plan.objectives["finetune"]
        return self.once(goal, partial(self._dense, goal))

    def _dense(self, objective: str) -> nn.Module:
        phase = self.plan.phase("pretrain", "joint/dense", objective=objective)
        model = parametrizations.copied(self.start)
        dataclasses.replace(phase, recipe=self._recipe(phase, phase.recipe.epochs, "dense")).fit(model, objective)
        return model

    def _recipe(self, phase: Phase, epochs: int, stage: str) -> Recipe:
        """The recipe of a phase with the length and the learning rate of a stage (`STAGES`)."""
        lr, schedule = STAGES[stage]
        schedule = schedule if self.form == "paper" else phase.recipe.schedule
        clip = 10.0 if stage == "dense" else phase.recipe.clip_norm  # without it, one of three LeNets ended in NaN
        return dataclasses.replace(phase.recipe, epochs=epochs, lr=lr, schedule=schedule, clip_norm=clip)

    def train(
        self,
        model: nn.Module,
        name: str,
        epochs: int,
        *,
        stage: str = "weights",
        objective: str | None = None,
        teacher: nn.Module | None = None,
        **options,
    ) -> nn.Module:
        """Train a network in place, and return it. ``name`` is that of its states; options are those of `Phase.fit`."""
        phase = self.plan.phase("finetune", "joint", objective=objective)
        goal = phase.objective if teacher is None else Distilled(phase.objective, runtime.active().place(teacher))
        recipe = self._recipe(phase, epochs, stage)
        dataclasses.replace(phase, recipe=recipe, objective=goal).fit(model, name, **options)
        return model

    def masked(self, dense: nn.Module, count: int) -> nn.Module:
        """A copy that keeps the ``count`` largest weights overall, with BatchNorm statistics of what is left."""
        weights = factors.tensors(dense)
        chosen = projections.largest_of_all(list(weights.values()), count)
        return self.refreshed(masks.apply_masks(dense, dict(zip(weights, chosen, strict=True))))

    def projected(self, model: nn.Module, count: int) -> nn.Module:
        """The network itself, projected to ``count`` nonzeros, with BatchNorm statistics of what is left."""
        constraints.project(model, count=count)
        return self.refreshed(model)

    def refreshed(self, model: nn.Module) -> nn.Module:
        """The network itself, with BatchNorm statistics of its weights as they are now (`statistics.refresh`)."""
        statistics.refresh(model, self.plan.images.train.images)
        return model

    def sparse(self, model: nn.Module, name: str, epochs: int, count: int, **options) -> nn.Module:
        """Train with a projection to ``count`` nonzeros after every step, in place, and return the network."""
        after_step = partial(constraints.project, count=count)
        return self.train(model, name, epochs, after_step=after_step, **options)


def _nap(bench: _Bench, size: _Size) -> nn.Module:
    """Natural training, the largest weights, natural fine-tuning of these."""
    masked = bench.masked(bench.dense("natural"), size.count)
    return parametrizations.bake(bench.train(masked, size.title, bench.epochs, objective="natural"))


def _da(bench: _Bench, size: _Size) -> nn.Module:
    """Dense adversarial training."""
    return bench.train(parametrizations.copied(bench.dense()), size.title, bench.epochs)


def _ap(bench: _Bench, size: _Size) -> nn.Module:
    """Adversarial training, the largest weights, adversarial fine-tuning of these."""
    masked = bench.masked(bench.dense(), size.count)
    return parametrizations.bake(bench.train(masked, size.title, bench.epochs))


def _al0(bench: _Bench, size: _Size) -> nn.Module:
    """Adversarial training in which the largest weights are chosen anew after every step."""
    start = bench.projected(parametrizations.copied(bench.dense()), size.count)
    return bench.sparse(start, size.title, bench.epochs, size.count)


def _alr(bench: _Bench, size: _Size) -> nn.Module | None:
    """Low rank by sigma^2 per stored number, adversarial fine-tuning of both factors."""
    dense = bench.dense()
    weights = {name: dense.get_submodule(name).weight.detach().flatten(1) for name in factors.layer_names(dense)}
    try:
        ranks = low_rank.ranks(weights, size.count)
    except ValueError as error:
        warnings.warn(f"{size.title} is left out: {error}", stacklevel=4)
        return None
    parts = {name: low_rank.truncated(weights[name], rank) for name, rank in ranks.items() if rank is not None}
    nothing = {name: torch.zeros_like(weights[name]) for name in parts}
    model = factors.with_factors(dense, {name: (*parts[name], nothing[name]) for name in parts})
    for name in parts:
        factors.stored_factors(model.get_submodule(name))[-1].requires_grad_(False)
    return bench.train(bench.refreshed(model), size.title, bench.epochs)


def _atmc(bench: _Bench, size: _Size, *, start: str = "identity") -> nn.Module:
    """Al0, then the same with factors, then with few distinct values in each of them, too.

    ``start``: ``identity`` factorizes the network of Al0 as the paper does; ``svd`` factorizes the dense network into
    low rank and single entries (`low_rank.split`), and trains these from the first stage on.
    """
    prune, finetune = (bench.plan.epochs[kind] for kind in ("prune", "finetune"))
    model = bench.once(
        f"{start}-{size.ratio}", partial(_FIRST[start], bench, size.count, f"{start}-{size.ratio}", prune)
    )
    model = parametrizations.copied(model)
    last = 0 if size.bits is None else 3 * finetune // 7 or 1
    bench.sparse(model, f"{size.title}-32", finetune - last, size.count, stage="factors")
    if size.bits is None:
        return model
    hooks = Codebooks(size.count, size.bits)
    model = hooks.attached(model)
    options = {"penalty": hooks.penalty, "after_step": hooks.after_step, "keep": "last", "stage": "values"}
    return hooks.settled(bench.train(model, f"{size.title}-{size.bits}", last, **options))


def _identity(bench: _Bench, count: int, name: str, epochs: int) -> nn.Module:
    """The first stage of ATMC: Al0, then factors that give the same weights."""
    start = bench.projected(parametrizations.copied(bench.dense()), count)
    sparse = bench.sparse(start, name, epochs, count)
    return factors.factorized(sparse, dict.fromkeys(factors.layer_names(sparse)))


def _svd(bench: _Bench, count: int, name: str, epochs: int) -> nn.Module:
    """The first stage of ATMC that starts from low rank and single entries."""
    dense = bench.dense()
    weights = {layer: dense.get_submodule(layer).weight.detach().flatten(1) for layer in factors.layer_names(dense)}
    start = bench.projected(factors.with_factors(dense, low_rank.split(weights, count)), count)
    return bench.sparse(start, name, epochs, count)


_FIRST = {"identity": _identity, "svd": _svd}


def _masked_qat(bench: _Bench, size: _Size) -> nn.Module:
    """The largest weights, trained while they are rounded, with the dense adversarial network as teacher."""
    model = bench.masked(bench.dense(), size.count)
    for name in factors.layer_names(bench.dense()):
        parametrize.register_parametrization(model.get_submodule(name), "weight", RangeQuantized(size.bits))
    return parametrizations.bake(bench.train(model, size.title, bench.epochs, teacher=bench.dense()))


DENSE = "DA"
"""The rival that is not compressed."""


@dataclass(frozen=True)
class Rival:
    """One way to a size.

    Attributes:
        make: (bench, size) -> network; None if the size is too small for it.
        bits: of each value; None: 32.
        indexed: an index says where the nonzeros are.
        used_bits: so many distinguish the values that really occur, if these are fewer than ``2^bits``.
    """

    make: Callable[[_Bench, _Size], nn.Module | None]
    bits: int | None = None
    indexed: bool = True
    used_bits: int | None = None


RIVALS: Mapping[str, Rival] = {
    "NAP": Rival(_nap),
    DENSE: Rival(_da),
    "AP": Rival(_ap),
    "Al0": Rival(_al0),
    "ALR": Rival(_alr, indexed=False),
    "ATMC-32": Rival(_atmc),
    "ATMC-8": Rival(_atmc, 8),
    "ATMC-32-svd": Rival(partial(_atmc, start="svd")),
    "ATMC-8-svd": Rival(partial(_atmc, start="svd"), 8),
    "masked_qat": Rival(_masked_qat, 8, used_bits=7),  # a uniform grid, of which the gap around 0 is not used
}


def _check_plan(plan: Plan) -> None:
    """Raise a ValueError if the plan's fine-tuning is not adversarial, or too short for the chain."""
    goal = plan.objectives["finetune"]
    if goal not in objectives.ROBUST:
        raise ValueError(f"expected an objective of finetune that attacks images, such as adversarial, got {goal!r}")
    for kind, least in (("pretrain", 1), ("prune", 1), ("finetune", 2)):
        if plan.epochs[kind] < least:
            raise ValueError(f"expected at least {least} epochs to {kind}, got {plan.epochs[kind]}")
