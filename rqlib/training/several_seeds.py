"""The same training with several seeds: together on a GPU, one after another on a CPU: `each_seed`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pandas import DataFrame
from torch import nn

from rqlib import data
from rqlib.core import runtime
from rqlib.core.vocabulary import Attack, Objective
from rqlib.training.loop import fit
from rqlib.training.recipes import Recipe
from rqlib.training.together import can_be_joined, fit_together


def each_seed(
    make: Callable[[int], nn.Module],
    dataset: data.ImageDataset,
    objective: Objective,
    recipe: Recipe,
    seeds: Iterable[int],
    *,
    attack: Attack | None = None,
    keep: Callable[[str], Path] | None = None,
) -> Iterator[tuple[int, nn.Module, DataFrame]]:
    """Train one network per seed; yields (seed, network, history).

    On a CPU `fit` trains one after another, because all at once would take longer there. On a GPU `fit_together`
    trains them as one, unless the recipe averages weights or clips gradients, or the objective keeps the last epoch.

    Args:
        make: seed -> network with random weights of that seed.
        objective: of all of them. A penalty may be made for any one of them, because all have the same layers.
        keep: file name -> path of a file in which a training is kept after every epoch (``run.unfinished``).

    Raises:
        As `fit`.
    """
    seeds = list(seeds)
    path = (lambda name: None) if keep is None else keep
    joined = recipe.epochs and can_be_joined(recipe, objective)
    if len(seeds) > 1 and runtime.active().device.type == "cuda" and joined:
        networks = [runtime.active().place(make(seed)) for seed in seeds]
        options = {"attack": attack, "checkpoint": path("together.pt")}
        histories = fit_together(networks, dataset, objective, recipe, seeds, **options)
        yield from zip(seeds, networks, histories, strict=True)
        return
    for seed in seeds:
        network = make(seed)
        options = {"attack": attack, "checkpoint": path(f"seed{seed}.pt"), "seed": seed}
        yield seed, network, fit(network, dataset, objective, recipe, **options)
