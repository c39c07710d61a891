"""Pruning driven by an objective: the weights that stay are chosen by magnitude, by trained scores, or by ADMM.

Each phase (pretrain, prune, fine-tune) has an objective of its own. The methods leave the network that they are given
as it is, and return a masked copy.
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn

from rqlib import data, training
from rqlib.core import parametrizations, runtime
from rqlib.core.entry import classifier
from rqlib.core.parametrizations import steps_of
from rqlib.core.vocabulary import Attack, Objective, did_you_mean
from rqlib.data import ImageDataset
from rqlib.pruning import masks, statistics
from rqlib.pruning.masks import Rule, apply_masks, magnitude_masks
from rqlib.pruning.parametrizations import Anchored, Masked, attach, stored, stored_name, with_state
from rqlib.pruning.scores import settled, with_scores
from rqlib.training.recipes import Recipe


@dataclass(frozen=True)
class Phase:
    """How one phase is trained: on which images, for which objective, by which recipe.

    The best epoch is the one most accurate under the attack, or on clean images if it is None; an objective that
    changes between epochs keeps the last. States from which an interrupted training goes on are kept in the folder, if
    there is one.
    """

    dataset: ImageDataset
    objective: Objective
    recipe: Recipe
    attack: Attack | None = None
    seed: int = 0
    folder: Path | None = None

    def fit(self, model: nn.Module, name: str, *, penalty=None, keep=None, **hooks) -> pandas.DataFrame:
        """Train the model in place (`training.fit`); return one row per epoch.

        ``name`` is that of the file of states, without ending. ``penalty(model)`` is added to the objective.
        ``keep`` is that of `training.fit`; ``hooks`` are ``after_step`` and ``after_epoch``.
        """
        objective = training.penalized(self.objective, penalty, 1.0)
        state = None if self.folder is None else Path(self.folder) / f"{name}.pt"
        options = {"attack": self.attack, "seed": self.seed, "checkpoint": state, "keep": keep}
        return training.fit(model, self.dataset, objective, self.recipe, **hooks, **options)

    @property
    def image(self) -> Tensor:
        """One black image (1, C, H, W), with which channels are followed through a network."""
        return torch.zeros(1, *self.dataset.spec.shape)


def lwm(model: nn.Module, kept: float, phase: Phase, *, structure: str = "weights", scope: str = "layer") -> nn.Module:
    """Keep the weights of largest magnitude (LWM); nothing is trained."""
    return apply_masks(model, magnitude_masks(model, kept, structure=structure, scope=scope, image=phase.image))


def hydra(model: nn.Module, kept: float, phase: Phase, *, structure: str = "weights", norms: bool = False) -> nn.Module:
    """Keep the weights of largest score; the scores are trained for the objective, and the weights stay as they are.

    Source: HYDRA, Sehwag et al. 2020, arXiv 2002.10509. ``norms``: BatchNorm is trained too.
    """
    model = classifier(model)
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
    """Train the weights with a pull toward sparse ones, then keep those of largest magnitude (ADMM).

    Minimizes ``objective + rho / 2 ||W - Z + U||^2``, starting from ``Z = project(W)`` and ``U = 0``. After every
    ``every`` epochs ``Z <- project(W + U)``, ``U <- U + W - Z``, ``rho <- growth rho``.

    Source: Zhang et al. 2018, arXiv 1804.03294.
    """
    model = classifier(model)
    weights = masks.dense_weights(model, kept)
    rule = masks.rule(model, structure, scope=scope, image=phase.image)
    anchored, sparse = parametrizations.copied(model), rule(weights, kept)
    for name in weights.keys() & sparse.keys():
        attach(anchored, name, Anchored(weights[name] * sparse[name], rho))
    hook = partial(_move_anchors, partial(rule, kept=kept), growth, every)
    phase.fit(anchored, f"admm-{kept}-{structure}-{scope}", penalty=_pull, after_epoch=hook, keep="last")
    trained = with_state(model, anchored)
    return apply_masks(trained, rule(masks.dense_weights(trained, kept), kept))


def multi_step(
    model: nn.Module, kept: float, phase: Phase, *, structure: str = "weights", scope: str = "layer"
) -> nn.Module:
    """Keep the weights of largest magnitude, and fewer of them in each epoch of training.

    In epoch t of T the fraction ``kept^(t / T)`` stays.
    """
    model = classifier(model)
    rule, epochs = masks.rule(model, structure, scope=scope, image=phase.image), phase.recipe.epochs
    first = rule(masks.dense_weights(model, kept), kept ** (1 / epochs))
    masked, hook = apply_masks(model, first), partial(_tighten, rule, kept, epochs)
    phase.fit(masked, f"multi_step-{kept}-{structure}-{scope}", after_epoch=hook, keep="last")
    return masked


METHODS: dict[str, Callable[..., nn.Module]] = {"lwm": lwm, "admm": admm, "hydra": hydra, "multi_step": multi_step}
"""Name -> method: (model, kept, phase, *, structure) -> masked copy of the network."""


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
    """Prune a pretrained network by a method, fine-tune what is left, and check that it is as sparse as asked.

    Args:
        method: its name in `METHODS`.
        kept: fraction of the weights that stay, above 0 and at most 1.
        pruning: how the weights that stay are chosen.
        finetuning: how they are trained afterwards, from BatchNorm statistics of the pruned network; None: they are
            not.
        equal_epochs: LWM, which trains nothing while pruning, is fine-tuned for as many epochs more.
        structure: what is removed (`masks.rule`).

    Returns:
        A masked copy; `parametrizations.bake` makes its weights plain.

    Raises:
        ValueError: unknown method; or as `masks.magnitude_masks`.
        AssertionError: as `masks.check`; or the masks change no logit, though the network's logits differ between
            images. Where they do not, because a training has failed, a warning says so.
    """
    if method not in METHODS:
        raise ValueError(did_you_mean("method", method, METHODS))
    model = classifier(model)
    masked = METHODS[method](model, kept, pruning, structure=structure, **options)
    exact = {"structure": structure, "scope": options.get("scope", "layer")}
    masks.check(masked, kept, **exact)
    dense = not any((~step.mask).any() for step in steps_of(masked, Masked).values())
    if not dense and not changes_output(with_state(model, masked), masked, pruning.dataset):
        assert is_constant(model, pruning.dataset), "the masks change no logit"
        warnings.warn("the network gives every image the same logits, which no mask changes", stacklevel=2)
    if finetuning is not None:
        more = pruning.recipe.epochs if equal_epochs and method == "lwm" else 0
        recipe = dataclasses.replace(finetuning.recipe, epochs=finetuning.recipe.epochs + more)
        statistics.refresh(masked, finetuning.dataset.train.images)
        dataclasses.replace(finetuning, recipe=recipe).fit(masked, f"finetune-{method}-{kept}-{structure}")
        masks.check(masked, kept, **exact)
    return masked


def changes_output(one: nn.Module, other: nn.Module, dataset: ImageDataset, images: int = 8) -> bool:
    """Whether the logits of two networks differ for any of the first training images."""
    return not torch.equal(_logits(one, dataset, images), _logits(other, dataset, images))


def is_constant(model: nn.Module, dataset: ImageDataset, images: int = 8) -> bool:
    """Whether a network gives all of the first training images the same logits."""
    logits = _logits(model, dataset, images)
    return torch.equal(logits, logits[:1].expand_as(logits))


@torch.no_grad()
def _logits(model: nn.Module, dataset: ImageDataset, images: int) -> Tensor:
    """Of the first training images, in eval mode."""
    with runtime.evaluating(model):
        x = runtime.active().place(data.to_pixels(dataset.train.images[:images]))
        return runtime.active().place(model)(x)


def _pull(model: nn.Module) -> Tensor:
    """The penalty of ADMM, summed over all layers."""
    steps = steps_of(model, Anchored).items()
    return torch.stack([step.penalty(model.get_parameter(stored_name(name))) for name, step in steps]).sum()


def _move_anchors(rule: Callable, growth: float, every: int, model: nn.Module, rows: list[dict]) -> None:
    """After ``every`` epochs: move what ADMM pulls each weight to."""
    if len(rows) % every:
        return
    steps, weights = steps_of(model, Anchored), stored(model, Anchored)
    sparse = rule({name: weights[name] + step.dual for name, step in steps.items()})
    for name, step in steps.items():
        step.update(weights[name], sparse[name].mul, growth)


def _tighten(rule: Rule, kept: float, epochs: int, model: nn.Module, rows: list[dict]) -> None:
    """After an epoch, unless it was the last: apply the masks of the next one."""
    if len(rows) == epochs:
        return
    steps = steps_of(model, Masked)
    weights = {name: tensor * steps[name].mask for name, tensor in stored(model, Masked).items() if tensor.dim() > 1}
    for name, mask in rule(weights, kept ** ((len(rows) + 1) / epochs)).items():
        steps[name].mask.copy_(mask)
