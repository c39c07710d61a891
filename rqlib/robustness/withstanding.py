"""Which images withstand a battery of attacks: the share that withstands all of them is what may be claimed.

Of a network that draws noise the lowest accuracy may be claimed: with every attack whose success is decided by other
draws, some image would fall by chance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import attacks, measures
from rqlib.core.projections import Ball
from rqlib.core.vocabulary import Attack
from rqlib.defenses.noise import is_randomized
from rqlib.robustness import random_networks

ALL = "all of these"
LOWEST = "lowest of these"


@dataclass(frozen=True)
class Withstood:
    """The result of `battery`.

    Attributes:
        right: attack -> whether each image is classified as labeled under it, bool (N,). The first is ``none``, no
            attack; the last, what may be claimed: ``all of these`` tells which images withstand every attack,
            ``lowest of these``, of a network that draws noise, which withstand the attack that fools most.
    """

    right: dict[str, Tensor]

    @property
    def table(self) -> DataFrame:
        """One row per attack: attack, and the columns of `score`."""
        before = self.right["none"]
        return DataFrame([{"attack": name, **score(right, before)} for name, right in self.right.items()])

    def first_fooled(self, attack: str | None = None) -> int:
        """Index of the first image that is right without an attack and wrong under this one; 0 if there is none.

        Without the name of an attack, the last row decides.
        """
        fooled = self.right["none"] & ~self.right[attack or [*self.right][-1]]
        return fooled.int().argmax().item()


def battery(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    ball: Ball,
    steps: int = 50,
    restarts: int = 10,
    keep: Callable[[str], Path] | None = None,
) -> Withstood:
    """Attack a network in several ways, from none at all to a long PGD with restarts and two losses.

    A network that draws noise answers by the majority of ten fresh predictions. It is attacked without EOT, as if it
    drew none, and with EOT: by gradients averaged over 20 draws, of both losses. To bound the cost, these PGDs have at
    most 10 steps and no restarts.

    Args:
        images, labels: uint8 (N, C, H, W), int64 (N,).
        steps, restarts: of the long PGD.
        keep: file name -> path of a file in which the result of an attack is kept after every batch; an interrupted
            battery goes on from these files (``run.unfinished``). By default nothing is kept.
    """
    is_random = is_randomized(model)
    right = {}
    for name, attack in (eot_attackers(ball, steps) if is_random else attackers(ball, steps, restarts)).items():
        checkpoint = None if keep is None else keep(f"{name}.pt")
        right[name] = random_networks.correct(model, images, labels, attack=attack, checkpoint=checkpoint)
    if is_random:
        return Withstood(right | {LOWEST: min(right.values(), key=torch.sum)})
    return Withstood(right | {ALL: torch.stack([*right.values()]).all(0)})


def attackers(ball: Ball, steps: int, restarts: int) -> dict[str, Attack]:
    """Name -> attack of the battery.

    The long PGD climbs the cross-entropy, and then, because this loss saturates, the margin between the classes.
    """
    long = {"ball": ball, "active_set": True, "restarts": restarts, **attacks.pace(ball, steps)}
    return {
        "none": attacks.none,
        "FGSM": attacks.named("fgsm", ball=ball),
        "PGD-10": attacks.named("pgd", ball=ball, active_set=True, **attacks.pace(ball, 10)),
        f"PGD-{steps}x{restarts}": attacks.named("pgd", **long),
        f"PGD-{steps}x{restarts}, margin": attacks.named("pgd", loss="margin", **long),
    }


def eot_attackers(ball: Ball, steps: int) -> dict[str, Attack]:
    """Name -> attack of the battery for a network that draws noise."""
    steps, draws = min(steps, random_networks.STEPS), random_networks.EOT_SAMPLES
    return {
        "none": attacks.none,
        f"PGD-{steps}, without EOT": random_networks.without_eot(ball, steps),
        f"FGSM, EOT-{draws}": random_networks.Averaged(attacks.named("fgsm", ball=ball)),
        f"PGD-{steps}, EOT-{draws}": random_networks.of_the_mean(ball, steps),
        f"PGD-{steps}, EOT-{draws}, mean of the losses": random_networks.mean_of_losses(ball, steps),
    }


def score(right: Tensor, before: Tensor) -> dict[str, float]:
    """accuracy, the ends low and high of its 95% interval over images (Wilson), and success_rate.

    ``right`` and ``before`` (bool (N,)) tell which images are right under the attack and without it. The success rate
    is the share of fooled images among those that were right before.
    """
    hits, count = int(right.sum()), len(right)
    low, high = measures.wilson(hits / count, count)
    fooled = (before & ~right).sum().item() / max(int(before.sum()), 1)
    return {"accuracy": hits / count, "low": low, "high": high, "success_rate": fooled}
