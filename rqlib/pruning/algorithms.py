"""Pruning driven by the objective: what stays is decided by magnitude, by trained scores, or by ADMM.

Three phases: pretrain, prune, fine-tune, each with its own objective, each by `training.fit`. Every function returns
a copy.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib import data, models, training
from rqlib.core import layers, projections, runtime
from rqlib.core.parametrizations import steps_of
from rqlib.core.vocabulary import Attack, ImageSpec, Objective, did_you_mean
from rqlib.data import ImageDataset
from rqlib.measures import cost
from rqlib.pruning import masks
from rqlib.pruning.masks import Rule, apply_masks, filter_masks, magnitude_masks
from rqlib.pruning.parametrizations import Anchored, Masked, Scored
from rqlib.training.recipes import Recipe

__all__ = [
    "METHODS",
    "Phase",
    "admm",
    "apply_masks",
    "compact",
    "filter_masks",
    "hydra",
    "lwm",
    "magnitude_masks",
    "multi_step",
    "run",
    "settled",
    "with_scores",
]


@dataclass(frozen=True)
class Phase:
    """How one phase is trained: on which images, for which objective, by which recipe.

    ``attack``: its best epoch is the one most accurate under it (None: on clean images). ``folder``: where its states
    are kept, from which an interrupted training goes on.
    """

    dataset: ImageDataset
    objective: Objective
    recipe: Recipe
    attack: Attack | None = None
    seed: int = 0
    folder: Path | None = None

    def fit(self, model: nn.Module, name: str, *, penalty=None, after_epoch=None, keep="best") -> pandas.DataFrame:
        """`training.fit`; ``penalty(model)`` is added to the objective, ``name`` is its state's file."""
        objective = self.objective if penalty is None else partial(_penalized, self.objective, penalty)
        state = None if self.folder is None else Path(self.folder) / f"{name}.pt"
        options = {"attack": self.attack, "seed": self.seed, "checkpoint": state, "keep": keep}
        return training.fit(model, self.dataset, objective, self.recipe, after_epoch=after_epoch, **options)

    @property
    def image(self) -> Tensor:
        """One black image (1, C, H, W): the shape that channels are followed with."""
        return torch.zeros(1, *self.dataset.spec.shape)


def lwm(model: nn.Module, kept: float, phase: Phase, *, structure: str = "weights", scope: str = "layer") -> nn.Module:
    """Masked by magnitude; nothing is trained."""
    return apply_masks(model, magnitude_masks(model, kept, structure=structure, scope=scope, image=phase.image))


def hydra(model: nn.Module, kept: float, phase: Phase, *, structure: str = "weights", norms: bool = False) -> nn.Module:
    """Masked by scores that are trained for the objective while the weights stay as they are (arXiv 2002.10509)."""
    scored = with_scores(model, kept, structure=structure, image=phase.image, norms=norms)
    phase.fit(scored, f"hydra-{kept}-{structure}")
    return settled(scored, model)


def admm(
    model: nn.Module,
    kept: float,
    phase: Phase,
    *,
    structure: str = "weights",
    scope: str = "layer",
    rho: float = 1e-3,
    growth: float = 1.3,
    every: int = 20,
) -> nn.Module:
    """Weights trained toward the sparse ones, then masked by magnitude (Zhang et al. 2018, arXiv 1804.03294).

    Minimizes ``objective + rho / 2 ||W - Z + U||^2``, from ``Z = project(W)`` and ``U = 0``; every ``every`` epochs
    ``Z <- project(W + U)``, ``U <- U + W - Z``, ``rho <- growth rho``.
    """
    weights = masks.dense_weights(model, kept)
    rule = masks.rule(model, structure, scope=scope, image=phase.image)
    anchored, sparse = copy.deepcopy(model), rule(weights, kept)
    for name in weights.keys() & sparse.keys():
        _attach(anchored, name, Anchored(weights[name] * sparse[name], rho))
    hook = partial(_move_anchors, partial(rule, kept=kept), growth, every)
    phase.fit(anchored, f"admm-{kept}-{structure}-{scope}", penalty=_pull, after_epoch=hook, keep="last")
    trained = _with_state(model, anchored)
    return apply_masks(trained, rule(masks.dense_weights(trained, kept), kept))


def multi_step(
    model: nn.Module, kept: float, phase: Phase, *, structure: str = "weights", scope: str = "layer"
) -> nn.Module:
    """Masked by magnitude more and more while training: epoch t of T keeps ``kept^(t / T)``."""
    rule, epochs = masks.rule(model, structure, scope=scope, image=phase.image), phase.recipe.epochs
    first = rule(masks.dense_weights(model, kept), kept ** (1 / epochs))
    masked = apply_masks(model, first)
    phase.fit(
        masked, f"multi_step-{kept}-{structure}-{scope}", after_epoch=partial(_tighten, rule, kept, epochs), keep="last"
    )
    return masked


METHODS: dict[str, Callable[..., nn.Module]] = {"lwm": lwm, "admm": admm, "hydra": hydra, "multi_step": multi_step}
"""Name -> method (model, kept, phase, *, structure) -> masked network."""


def run(
    method: str,
    model: nn.Module,
    kept: float,
    pruning: Phase,
    finetuning: Phase | None,
    *,
    equal_epochs: bool = False,
    structure: str = "weights",
    **options,
) -> nn.Module:
    """Prune a pretrained network by a method, fine-tune what is left, check that it is as sparse as asked.

    Args:
        finetuning: None leaves it out.
        equal_epochs: LWM, which trains nothing while pruning, is fine-tuned for as many epochs more.
        options: of the method.

    Raises:
        ValueError: unknown method; as `masks.magnitude_masks`.
        AssertionError: as `masks.check`; or the masks change no logit.
    """
    if method not in METHODS:
        raise ValueError(did_you_mean("method", method, METHODS))
    masked = METHODS[method](model, kept, pruning, structure=structure, **options)
    exact = {"structure": structure, "scope": options.get("scope", "layer")}
    masks.check(masked, kept, **exact)
    dense = not any((~step.mask).any() for step in steps_of(masked, Masked).values())
    assert dense or changes_output(_with_state(model, masked), masked, pruning.dataset), "the masks change no logit"
    if finetuning is not None:
        more = pruning.recipe.epochs if equal_epochs and method == "lwm" else 0
        recipe = dataclasses.replace(finetuning.recipe, epochs=finetuning.recipe.epochs + more)
        dataclasses.replace(finetuning, recipe=recipe).fit(masked, f"finetune-{method}-{kept}-{structure}")
        masks.check(masked, kept, **exact)
    return masked


def with_scores(
    model: nn.Module, kept: float, *, structure: str = "weights", image: Tensor | None = None, norms: bool = False
) -> nn.Module:
    """A copy whose masks follow trainable scores (`Scored`), layer by layer; the rest is frozen.

    Scaled initialization ``S = sqrt(6 / fan_in) W / max |W|``: at the start the masks are those of magnitude. With
    ``filters`` there is one score a channel, ``||W_o||`` over all that write to it in place of W.

    Args:
        norms: BatchNorm is trained along; its running statistics adapt in any case.
        Others as `masks.rule`.

    Raises:
        ValueError: as `masks.magnitude_masks`.
    """
    weights = masks.dense_weights(model, kept)
    scored = copy.deepcopy(model).requires_grad_(False)
    for _, norm in layers.batchnorms(scored):
        norm.requires_grad_(norms)
    if structure == "filters":
        return _with_channel_scores(scored, weights, kept, image)
    masks.rule(model, structure)  # says what is wrong with the name
    for name, weight in weights.items():
        basis = projections.column_norms(weight) if structure == "columns" else weight
        step = Scored(scaled_scores(basis, weight[0].numel()), partial(masks.ENTRIES[structure], kept=kept))
        _attach(scored, name, step)
    return scored


def scaled_scores(basis: Tensor, fan_in: int) -> nn.Parameter:
    """``sqrt(6 / fan_in) W / max |W|``, trainable."""
    return nn.Parameter((6 / fan_in) ** 0.5 * basis / basis.abs().max().clamp(min=1e-12))


def settled(scored: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of a network with scores whose masks are the present ones for good, trainable as ``like``."""
    chosen = {name: step.mask() for name, step in steps_of(scored, Scored).items()}
    return apply_masks(_with_state(like, scored), chosen)


@torch.no_grad()
def changes_output(one: nn.Module, other: nn.Module, dataset: ImageDataset, images: int = 8) -> bool:
    """Whether two networks give any of the first training images different logits."""
    with runtime.evaluating(one), runtime.evaluating(other):
        x = runtime.active().place(data.to_pixels(dataset.train.images[:images]))
        return not torch.equal(runtime.active().place(one)(x), runtime.active().place(other)(x))


def _with_channel_scores(scored: nn.Module, weights: masks.Weights, kept: float, image: Tensor | None) -> nn.Module:
    """One score a channel, shared by all tensors that write to it."""
    found = masks.find_channels(scored, image)
    norms, pools = masks.channel_norms(weights, found), found.pools()
    fan_in = torch.ones_like(norms)
    for name in found.reads:
        fan_in[found.writes[name]] = float(weights[f"{name}.weight"][0].numel())
    scores = nn.Parameter(torch.cat([scaled_scores(norms[p], fan_in[p[0]].item()).data for p in pools]))
    place = torch.zeros(len(norms), dtype=torch.int64)
    place[torch.cat(pools)] = torch.arange(len(scores))
    places = list(torch.arange(len(scores)).split([len(p) for p in pools]))
    choose = partial(masks.best_channels, pools=places, kept=kept)
    for name, rows in masks.channel_rows(scored, found).items():
        _attach(scored, name, Scored(scores, choose, place[rows]))
    return scored.to(next(iter(weights.values())).device)


def _attach(model: nn.Module, name: str, step: nn.Module) -> None:
    owner, _, tensor = name.rpartition(".")
    parametrize.register_parametrization(model.get_submodule(owner), tensor, step, unsafe=True)


def _with_state(plain: nn.Module, parametrized: nn.Module) -> nn.Module:
    """A copy of a plain network with the stored weights and the statistics of its parametrized twin."""
    copied, state = copy.deepcopy(plain), parametrized.state_dict()
    stored = {name: _original(name) if _original(name) in state else name for name in copied.state_dict()}
    copied.load_state_dict({name: state[source] for name, source in stored.items()})
    return copied


def _original(name: str) -> str:
    owner, _, tensor = name.rpartition(".")
    return f"{owner}.parametrizations.{tensor}.original".lstrip(".")


def _stored(model: nn.Module, kind: type) -> masks.Weights:
    """Name -> stored tensor of everything that passes a parametrization of this kind."""
    return {name: model.get_parameter(_original(name)).detach() for name in steps_of(model, kind)}


def _penalized(objective: Objective, penalty, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return objective(model, x, y) + penalty(model)


def _pull(model: nn.Module) -> Tensor:
    """ADMM's penalty, over all layers."""
    steps = steps_of(model, Anchored).items()
    return torch.stack([step.penalty(model.get_parameter(_original(name))) for name, step in steps]).sum()


def _move_anchors(rule: Callable, growth: float, every: int, model: nn.Module, rows: list[dict]) -> None:
    if len(rows) % every:
        return
    steps, stored = steps_of(model, Anchored), _stored(model, Anchored)
    sparse = rule({name: stored[name] + step.dual for name, step in steps.items()})
    for name, step in steps.items():
        step.update(stored[name], sparse[name], growth)


def _tighten(rule: Rule, kept: float, epochs: int, model: nn.Module, rows: list[dict]) -> None:
    """Masks of the next epoch."""
    if len(rows) == epochs:
        return
    steps, stored = steps_of(model, Masked), _stored(model, Masked)
    weights = {name: tensor * steps[name].mask for name, tensor in stored.items() if tensor.dim() > 1}
    for name, mask in rule(weights, kept ** ((len(rows) + 1) / epochs)).items():
        steps[name].mask.copy_(mask)


def compact(name: str, spec: ImageSpec, weights: int, *, width: float = 1.0) -> nn.Module:
    """The control that is trained from scratch: the widest dense network of a kind with at most so many weights.

    Raises:
        ValueError: even one channel everywhere is more.
    """
    low, high = 0.0, width
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _weights_at(name, spec, middle) <= weights else (low, middle)
    return models.build(name, spec, width=low)


def _weights_at(name: str, spec: ImageSpec, width: float) -> int:
    """How many weights a network has; 0 where it is too narrow to be built."""
    try:
        with torch.device("meta"):
            return cost.weight_count(models.build(name, spec, width=width))
    except ValueError:
        return 0
