"""The same training with several seeds, one after another: `each_seed`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pandas import DataFrame
from torch import nn

from rqlib import data
from rqlib.core.vocabulary import Attack, Objective
from rqlib.training.loop import fit
from rqlib.training.recipes import Recipe


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
    """Train one network per seed by `fit`; yields (seed, network, history).

    Args:
        make: seed -> network with random weights of that seed.
        objective: of all of them. A penalty may be made for any one of them, because all have the same layers.
        keep: file name -> path of a file in which a training is kept after every epoch (``run.unfinished``).

    Raises:
        As `fit`.
    """
    for seed in seeds:
        network = make(seed)
        checkpoint = None if keep is None else keep(f"seed{seed}.pt")
        yield seed, network, fit(network, dataset, objective, recipe, attack=attack, checkpoint=checkpoint, seed=seed)
