"""How accuracy falls under attack: against epsilon, in two geometries of "8/255", of quantized networks, on a plane."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas
import scipy.stats
import torch
from torch import Tensor, nn

from rqlib import attacks, data
from rqlib.core import runtime
from rqlib.core.projections import BALLS, Ball, Linf
from rqlib.core.vocabulary import Attack
from rqlib.measures import evaluate
from rqlib.robustness import diagnostics

Maker = Callable[[Ball], Attack]
"""An attack for any radius."""


def makers(steps: int = 20) -> dict[str, Maker]:
    """Name -> attack for any ball, from weak to strong: the floor, one step, many steps; only success matters."""

    def climb(ball: Ball) -> Attack:
        return partial(attacks.pgd, ball=ball, **attacks.pace(ball, steps), active_set=True)

    return {
        "noise": lambda ball: partial(attacks.noise, ball=ball, active_set=True),
        "FGSM": lambda ball: partial(attacks.fgsm, ball=ball),
        f"PGD-{steps}": climb,
    }


def score(right: Tensor, before: Tensor) -> dict:
    """accuracy with its 95% interval (Wilson) over images, and success_rate = fooled / right before.

    Args:
        right, before: whether each image is right under the attack and without it, bool (N,).
    """
    hits, count = int(right.sum()), len(right)
    low, high = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    fooled = (before & ~right).sum().item() / max(int(before.sum()), 1)
    return {"accuracy": hits / count, "low": low, "high": high, "success_rate": fooled}


def against_epsilon(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons_255: Sequence[float],
    *,
    norm: str = "Linf",
    attackers: Mapping[str, Maker] | None = None,
) -> pandas.DataFrame:
    """One row an attack and radius: attack, epsilon_255, and what `score` says.

    Args:
        images, labels: uint8 (N, C, H, W), int64 (N,).
        epsilons_255: radii in gray levels of 255; where one is 0 nothing is attacked.
        attackers: `makers` by default.
    """
    before = evaluate.correct(model, images, labels, attack=attacks.none)
    rows = []
    for name, maker in (makers() if attackers is None else attackers).items():
        for epsilon in epsilons_255:
            attack = maker(BALLS[norm](epsilon / 255))
            right = evaluate.correct(model, images, labels, attack=attack) if epsilon else before
            rows.append({"attack": name, "epsilon_255": epsilon, **score(right, before)})
    return pandas.DataFrame(rows)


def geometries(
    model: nn.Module, images: Tensor, labels: Tensor, epsilons_255: Sequence[float], *, steps: int = 4
) -> pandas.DataFrame:
    """Two meanings of "epsilon": in pixels, and in the network's normalized input (`attacks.pgd`, ``report_exact``).

    Both take ``steps`` steps of 2/255 in their own unit. Columns: epsilon_255, geometry, accuracy, and
    change_255: the largest change of a pixel, in gray levels, mean over the first 100 images.
    """
    rows = []
    x, y = next(data.batches(images[:100], labels[:100], 100))
    for epsilon in epsilons_255:
        for geometry, exact in (("pixels", False), ("normalized input, as the report", True)):
            attack = partial(attacks.pgd, ball=Linf(epsilon / 255), step_size=2 / 255, steps=steps, report_exact=exact)
            change = 255 * Linf(1.0).norm(attack(model, x, y) - x).mean().item()
            accuracy = evaluate.accuracy(model, images, labels, attack=attack)
            rows.append({"epsilon_255": epsilon, "geometry": geometry, "accuracy": accuracy, "change_255": change})
    return pandas.DataFrame(rows)


def decision_slice(
    model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, points: int = 61, reach: float = 8.0, seed: int = 0
) -> pandas.DataFrame:
    """What the network answers on a plane through one image: columns gradient, random (in epsilons), prediction.

    The plane is that of `diagnostics.directions`.

    Args:
        x, y: one image (1, C, H, W) in [0, 1] and its label (1,).
        points: along each axis, from -reach to reach; an odd number.
    """
    along, aside = diagnostics.directions(model, x, y, ball=ball, seed=seed)
    ticks = torch.arange(-(points // 2), points // 2 + 1) / (points // 2) * reach
    a, b = (part.flatten().to(x) for part in torch.meshgrid(ticks, ticks, indexing="ij"))
    plane = (x + a.view(-1, 1, 1, 1) * along + b.view(-1, 1, 1, 1) * aside).clamp(0, 1)
    with runtime.evaluating(model), torch.no_grad():
        predictions = torch.cat([model(part).argmax(1) for part in plane.split(512)])
    return pandas.DataFrame({"gradient": a.cpu(), "random": b.cpu(), "prediction": predictions.cpu()})
