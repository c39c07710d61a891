"""Every method at every size, networks hidden in others, and how much data and time choosing takes."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from pandas import DataFrame
from torch import nn

from rqlib import models
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.pruning import algorithms
from rqlib.pruning.certificates import Smoothing
from rqlib.pruning.evaluation import Networks, accuracies
from rqlib.pruning.plans import SCRATCH, Plan


def methods(dense: nn.Module, names: Sequence[str], kept: Sequence[float], plan: Plan) -> Networks:
    """Prune a network by every method to every size, and fine-tune what is left. Errors as `run`.

    ADMM moves its target about five times. LWM, which chooses without training, is fine-tuned for as many epochs more
    as the others choose. Nothing is fine-tuned if the plan has no epochs for it.

    Args:
        names: of `METHODS`, or ``scratch``: a narrower network with as many weights as stay, trained for the epochs
            of all phases. It is left out, with a warning, if the network is none of `MODELS`.
        kept: fractions of the weights that stay.
    """
    if SCRATCH in names and plan.model not in models.MODELS:
        names = [name for name in names if name != SCRATCH]
        warnings.warn(
            f"scratch is left out: only the library's own networks can be narrower, not {plan.model}", stacklevel=2
        )
    make = {SCRATCH: _from_scratch}
    return {(name, share): make.get(name, _pruned)(name, dense, share, plan) for name in names for share in kept}


def hidden(objectives: Sequence[str], plan: Plan, noise: Smoothing | None = None) -> DataFrame:
    """Train a network for each objective, and choose half of its weights for each objective, by `algorithms.hydra`.

    One row per network: pretrained_for, pruned_for (``none`` for the whole network), clean_accuracy, robust_accuracy;
    and smoothed_accuracy, which is certified by noise, if ``noise`` says how.
    """
    rows = []
    for trained in objectives:
        folder = f"hidden-{trained}"
        phase = plan.phase("pretrain", folder, objective=trained)
        network = plan.fresh(phase.objective)
        phase.fit(network, "pretrain")
        for chosen in ("none", *objectives):
            found = network
            if chosen != "none":
                found = algorithms.hydra(network, 0.5, plan.phase("prune", f"{folder}/{chosen}", objective=chosen))
            row = {"pretrained_for": trained, "pruned_for": chosen}
            row |= accuracies(found, plan, f"{folder}/era-{chosen}")
            if noise is not None:
                table = noise.certify(found, plan, f"{folder}/smoothed-{chosen}")
                row["smoothed_accuracy"] = table.certified.mean()
            rows.append(row)
    return DataFrame(rows)


def ablate(
    dense: nn.Module, kept: float, plan: Plan, *, images: Sequence[int] = (), epochs: Sequence[int] = ()
) -> DataFrame:
    """Choose weights by HYDRA with fewer training images, or for other numbers of epochs, without fine-tuning.

    Fewer images are used for the plan's epochs; other numbers of epochs use all of the plan's images. Where more
    images are asked for than there are, all of them are used, for one row, and a printed line says so. One row per
    network: varied (``images`` or ``epochs``), amount, clean_accuracy, robust_accuracy.
    """
    rows, images = [], _at_most(images, len(plan.images.train.labels))
    for varied, amount in [*(("images", count) for count in images), *(("epochs", count) for count in epochs)]:
        phase = plan.phase("prune", f"ablation-{varied}-{amount}")
        if varied == "images":
            phase = dataclasses.replace(phase, dataset=phase.dataset.take(train=amount))
        else:
            phase = dataclasses.replace(phase, recipe=dataclasses.replace(phase.recipe, epochs=amount))
        found = algorithms.hydra(dense, kept, phase)
        rows.append({"varied": varied, "amount": amount, **accuracies(found, plan, f"era-{varied}-{amount}")})
    return DataFrame(rows)


def _at_most(asked: Sequence[int], count: int) -> list[int]:
    """Numbers of images, of which there are ``count``, each once; a printed line says if more are asked for."""
    if more := [str(number) for number in asked if number > count]:
        print(f"there are only {count:,} training images: they stand for {', '.join(more)}")
    return list(dict.fromkeys(min(number, count) for number in asked))


def compact(
    name: str, spec: ImageSpec, weights: int, *, width: float = 1.0, options: Mapping | None = None
) -> nn.Module:
    """The widest new network of its kind, up to ``width``, with at most so many weights; ValueError if none exists."""
    build = partial(models.build, name, spec, options=options)

    def weights_at(width: float) -> int:
        try:
            with torch.device("meta"):
                return cost.weight_count(build(width=width))
        except ValueError:  # too narrow to be built
            return 0

    low, high = 0.0, width
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if weights_at(middle) <= weights else (low, middle)
    return build(width=low)


def _pruned(method: str, dense: nn.Module, kept: float, plan: Plan) -> nn.Module:
    folder, admm = f"{method}-{kept}", method == "admm"
    choosing = plan.phase("admm" if admm else "prune", folder)
    options = {"every": max(1, round(plan.epochs["prune"] / 5))} if admm else {}
    options |= {"structure": plan.structure, "equal_epochs": True}
    return algorithms.run(method, dense, kept, choosing, plan.finetuning(folder), **options)


def _from_scratch(name: str, dense: nn.Module, kept: float, plan: Plan) -> nn.Module:
    """A narrower network with as many weights as stay, trained for the objective of fine-tuning."""
    runtime.seed_everything(plan.seed)
    weights = round(kept * cost.weight_count(dense))
    network = compact(plan.model, plan.made_for, weights, width=plan.width, options=plan.options)
    phase = plan.phase(SCRATCH, f"{name}-{kept}")
    network = plan.begun(network, phase.objective)
    phase.fit(network, SCRATCH)
    return network
