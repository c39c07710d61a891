"""Adjust a trained generator until its images are about as hard for the teacher as real images are.

The images of a trained generator lie deep inside their classes. Each round measures how accurate the teacher is on
fresh images and then takes one kind of step: superposed labels move images into the gaps between classes, attacked
copies make images robust, and plain single labels keep images classified as asked.
"""

import copy
from pathlib import Path
from typing import NamedTuple

import pandas
import torch
from torch import nn

from rqlib import data, measures
from rqlib.attacks.methods import in_words
from rqlib.core import runtime
from rqlib.core.vocabulary import Attack
from rqlib.generator import mixtures, sampling
from rqlib.generator.network import Generator
from rqlib.generator.stepping import Training, frozen, mean, step

CLEAN_LIMIT, ROBUST_LIMIT = 3.0, 1.0  # points
WIDEN_EVERY = 300  # rounds: after each 300, both limits are one point wider


class Target(NamedTuple):
    """Accuracies (fractions) that the teacher shall have on the images: clean, and under the attack."""

    clean: float
    robust: float


NO_TARGET = Target(1.0, 0.0)
"""If nothing is known of real images: all are classified as asked, and none withstands an attack."""


class Adjusted(NamedTuple):
    """What `adjust_all` makes.

    Attributes:
        generators: ``trained``, as it was; ``adjusted`` without a target; ``targeted`` with a target.
        rounds: the rows of both adjustments, as of `adjust`, with the column generator.
        targets: the target of ``adjusted`` (None) and that of ``targeted``.
    """

    generators: dict[str, Generator]
    rounds: pandas.DataFrame
    targets: dict[str, Target | None]


def adjust_all(
    trained: Generator,
    teacher: nn.Module,
    real: data.Split,
    *,
    attack: Attack,
    folder: str | Path | None = None,
    **options,
) -> Adjusted:
    """Adjust two copies of a trained generator: without a target, and with the teacher's accuracies on real images.

    Args:
        real: images of a validation split, never of the test set. Only the two accuracies on them are used.
        folder: of the states of both adjustments; an interrupted adjustment goes on from there.
        attack, options: as in `adjust`.
    """
    targets = {"adjusted": None, "targeted": target(teacher, real, attack)}
    generators, rounds = {"trained": trained}, []
    for name, goal in targets.items():
        generators[name] = copy.deepcopy(trained)
        checkpoint = None if folder is None else Path(folder) / f"{name}.pt"
        rows = adjust(generators[name], teacher, attack=attack, target=goal, checkpoint=checkpoint, **options)
        rounds.append(rows.assign(generator=name))
    return Adjusted(generators, pandas.concat(rounds), targets)


def target(teacher: nn.Module, images: data.Split, attack: Attack) -> Target:
    """The teacher's accuracies on real images, which come from a validation split and never from the test set."""
    return Target(measures.accuracy(teacher, *images), measures.accuracy(teacher, *images, attack=attack))


def adjust(
    generator: Generator,
    teacher: nn.Module,
    *,
    attack: Attack,
    target: Target | None = None,
    rounds: int = 1000,
    images: int = 2560,
    steps: int = 1,
    batch_size: int = 128,
    lr: float = 1e-3,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> pandas.DataFrame:
    """Adjust the generator in place until the teacher's accuracies on its images are those of the target.

    Let c and p be the clean and the robust difference in points: accuracy on generated images minus the target's.
    The first condition that holds chooses the step:
    p < -1: ``adversarial``, single labels and 0.5 CE of attacked copies; c < -3: ``single``, plain single labels;
    p > 1: ``superposed`` labels; otherwise stop. All limits grow by 1 every 300 rounds.

    Args:
        attack: (teacher, x, y) -> adversarial x, for the robust accuracy and for the attacked copies.
        target: None for no target; then no real image is needed.
        rounds: at most this many.
        images: number of fresh generated images on which every round measures c and p.
        steps: optimizer steps per round.
        checkpoint, seed: as in `generator.fit`.

    Returns:
        One row per round: round, action (adversarial | single | superposed | stop), clean, robust (fractions),
        clean_difference, robust_difference (points), the parts of the loss. The last row is the final state.

    Raises:
        FloatingPointError, ValueError: as `generator.fit`; the target is not two fractions.
    """
    target = NO_TARGET if target is None else Target(*target)
    if not all(0 <= value <= 1 for value in target):
        raise ValueError(f"expected a target of fractions in [0, 1], got {target}; divide percent by 100")
    settings = {"attack": in_words(attack), "target": list(target), "rounds": rounds, "images": images, "steps": steps}
    settings |= {"batch": batch_size, "seed": seed}
    training = Training(generator, teacher, checkpoint, lr, settings)
    with frozen(teacher):
        for number in runtime.progress(range(len(training.rows), rounds + 1), "adjust"):
            if training.rows and training.rows[-1]["action"] == "stop":
                break
            row = {"round": number, **_measured(generator, teacher, attack, target, images, (seed, number))}
            action = choose(row, number) if number < rounds else "stop"
            parts = _steps(training, teacher, action, attack, steps, batch_size, runtime.rng(seed, number, 1))
            training.add(row | {"action": action} | parts)
    return pandas.DataFrame(training.rows)


def choose(row: dict, number: int) -> str:
    """The action of round ``number``, from the row's differences in points."""
    clean, robust, wider = row["clean_difference"], row["robust_difference"], number // WIDEN_EVERY
    if robust < -ROBUST_LIMIT - wider:
        return "adversarial"
    if clean < -CLEAN_LIMIT - wider:
        return "single"
    return "superposed" if robust > ROBUST_LIMIT + wider else "stop"


def _measured(generator: Generator, teacher, attack: Attack, goal: Target, images: int, seeds: tuple) -> dict:
    fresh = sampling.sample(generator, images, seed=runtime.rng(*seeds).initial_seed())
    found = target(teacher, fresh, attack)
    clean, robust = (100 * (own - wanted) for own, wanted in zip(found, goal, strict=True))
    return {**found._asdict(), "clean_difference": clean, "robust_difference": robust}


def _steps(training, teacher, action: str, attack: Attack, steps: int, batch_size: int, rng) -> dict[str, float]:
    if action == "stop":
        return {}
    classes = len(training.generator.embedding)
    rows = []
    with training.mode():
        for _ in range(steps):
            if action == "superposed":
                mixture = mixtures.superposed(batch_size, classes, rng)
            else:
                mixture = mixtures.single(torch.randint(classes, (batch_size,), generator=rng), classes)
            attacked = attack if action == "adversarial" else None
            rows.append(step(training, teacher, mixture, rng, attacked))
    return mean(rows)
