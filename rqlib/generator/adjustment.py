"""Adjust a trained generator until its images are about as hard for the teacher as real ones.

Trained images lie deep inside their classes. Superposed labels move them into the gaps; attacked copies make
them robust; plain steps keep them classified as asked. Which step is taken, a measurement before it decides.
"""

from pathlib import Path
from typing import NamedTuple

import pandas
import torch
from torch import nn

from rqlib import data, measures
from rqlib.attacks.methods import in_words
from rqlib.core import runtime
from rqlib.core.vocabulary import Attack
from rqlib.generator import network
from rqlib.generator.network import Generator
from rqlib.generator.training import Training, frozen, mean, step

CLEAN_LIMIT, ROBUST_LIMIT = 3.0, 1.0  # points
WIDEN_EVERY = 300  # rounds: then both limits grow by a point


class Target(NamedTuple):
    """Accuracies (fractions) that the teacher shall have on the images: clean, and under the attack."""

    clean: float
    robust: float


NO_TARGET = Target(1.0, 0.0)
"""Where nothing is known of real images: classified as asked, and an undefended network withstands no attack."""


def target(teacher: nn.Module, images: data.Split, attack: Attack) -> Target:
    """The teacher's accuracies on real images: of a validation split, never of the test set."""
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
    """Adjust the generator in place until the teacher is as accurate on its images as on the target's; a row a round.

    With c and p the clean and the robust difference in points, pseudo minus target, the first that holds:
    p < -1: ``adversarial``, single labels and 0.5 CE of attacked copies; c < -3: ``single``, plain single labels;
    p > 1: ``superposed`` labels; else stop. The limits grow by 1 every 300 rounds.

    Args:
        attack: (teacher, x, y) -> adversarial x, of the robust accuracy and of the attacked copies.
        target: None for no target: no image is needed.
        images: fresh pseudo images that c and p are measured on in every round.
        steps: optimizer steps a round.
        checkpoint, seed: as `generator.fit`.

    Returns:
        Columns: round, action (adversarial | single | superposed | stop), clean, robust (fractions),
        clean_difference, robust_difference (points), the parts of the loss; the last row is the final state.

    Raises:
        FloatingPointError, ValueError: as `generator.fit`; a target that is no fraction.
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
    """The action of a round, from the differences in points."""
    clean, robust, wider = row["clean_difference"], row["robust_difference"], number // WIDEN_EVERY
    if robust < -ROBUST_LIMIT - wider:
        return "adversarial"
    if clean < -CLEAN_LIMIT - wider:
        return "single"
    return "superposed" if robust > ROBUST_LIMIT + wider else "stop"


def _measured(generator: Generator, teacher, attack: Attack, target: Target, images: int, seeds: tuple) -> dict:
    fresh = network.sample(generator, images, seed=runtime.rng(*seeds).initial_seed())
    found = Target(measures.accuracy(teacher, *fresh), measures.accuracy(teacher, *fresh, attack=attack))
    differences = {
        f"{name}_difference": 100 * (getattr(found, name) - getattr(target, name)) for name in Target._fields
    }
    return found._asdict() | differences


def _steps(training, teacher, action: str, attack: Attack, steps: int, batch_size: int, rng) -> dict[str, float]:
    if action == "stop":
        return {}
    classes = len(training.generator.embedding)
    rows = []
    with training.mode():
        for _ in range(steps):
            if action == "superposed":
                mixture = network.superposed(batch_size, classes, rng)
            else:
                mixture = network.single(torch.randint(classes, (batch_size,), generator=rng), classes)
            attacked = attack if action == "adversarial" else None
            rows.append(step(training, teacher, mixture, rng, attacked))
    return mean(rows)
