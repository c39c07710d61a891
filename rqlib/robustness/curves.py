"""How accuracy falls as the allowed change grows, counted in pixels or in the network's normalized input."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas
from torch import Tensor, nn

from rqlib import attacks, data
from rqlib.core.projections import BALLS, Ball, Linf
from rqlib.core.vocabulary import Attack
from rqlib.defenses.noise import is_randomized
from rqlib.robustness import random_networks
from rqlib.robustness.random_networks import Averaged
from rqlib.robustness.withstanding import score

Maker = Callable[[Ball], Attack]
"""Ball -> attack inside it."""


def makers(steps: int = 20, *, active_set: bool = True) -> dict[str, Maker]:
    """Name -> attack for any ball, from weak to strong: random noise, one step, many steps of PGD.

    With an active set an image is left alone as soon as it fools the network. That is faster and counts the same, but
    the network is then barely wrong: for pictures, let the attack go on.
    """
    return {
        "noise": lambda ball: partial(attacks.noise, ball=ball, active_set=active_set),
        "FGSM": lambda ball: partial(attacks.fgsm, ball=ball),
        f"PGD-{steps}": lambda ball: partial(
            attacks.pgd, ball=ball, **attacks.pace(ball, steps), active_set=active_set
        ),
    }


def eot_makers(steps: int = 10) -> dict[str, Maker]:
    """The same for networks that draw noise: PGD along gradients of one forward pass, then of 20 draws."""
    return {
        "noise": lambda ball: Averaged(partial(attacks.noise, ball=ball)),
        f"PGD-{steps}, without EOT": lambda ball: random_networks.without_eot(ball, steps),
        f"PGD-{steps}, EOT-{random_networks.EOT_SAMPLES}": lambda ball: random_networks.of_the_mean(ball, steps),
    }


def against_epsilon(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons_255: Sequence[float],
    *,
    norm: str = "Linf",
    attackers: Mapping[str, Maker] | None = None,
) -> pandas.DataFrame:
    """Accuracy under attack: one row per attack and radius, with attack, epsilon_255 and the columns of `score`.

    Args:
        images, labels: uint8 (N, C, H, W), int64 (N,).
        epsilons_255: radii in gray levels of 255; a radius of 0 means no attack.
        norm: Linf or L2.
        attackers: name -> attack for any ball; by default `makers`, or `eot_makers` of a network that draws noise.
    """
    before = random_networks.correct(model, images, labels, attack=attacks.none)
    if attackers is None:
        attackers = eot_makers() if is_randomized(model) else makers()
    rows = []
    for name, maker in attackers.items():
        for epsilon in epsilons_255:
            attack = maker(BALLS[norm](epsilon / 255))
            right = random_networks.correct(model, images, labels, attack=attack) if epsilon else before
            rows.append({"attack": name, "epsilon_255": epsilon, **score(right, before)})
    return pandas.DataFrame(rows)


def geometries(
    model: nn.Module, images: Tensor, labels: Tensor, epsilons_255: Sequence[float], *, steps: int = 4
) -> pandas.DataFrame:
    """Two meanings of "epsilon": in pixels, and in the network's normalized input (`attacks.pgd`, ``report_exact``).

    Both attacks take ``steps`` steps of 2/255 in their own unit. One row per radius and meaning, with the columns
    epsilon_255, geometry, accuracy, and change_255: the largest change of a pixel in gray levels, averaged over the
    first 100 images. Of a network that draws noise, gradients are averaged over 20 draws.

    Args:
        images, labels: uint8 (N, C, H, W), int64 (N,).
        epsilons_255: radii in gray levels of 255.
    """
    rows = []
    x, y = next(data.batches(images[:100], labels[:100], 100))
    for epsilon in epsilons_255:
        for geometry, exact in (("pixels", False), ("normalized input, as the report", True)):
            settings = {"ball": Linf(epsilon / 255), "step_size": 2 / 255, "steps": steps, "report_exact": exact}
            attack = Averaged(partial(attacks.pgd, **settings))
            change = 255 * Linf(1.0).norm(attack(model, x, y) - x).mean().item()
            accuracy = random_networks.correct(model, images, labels, attack=attack).float().mean().item()
            rows.append({"epsilon_255": epsilon, "geometry": geometry, "accuracy": accuracy, "change_255": change})
    return pandas.DataFrame(rows)
