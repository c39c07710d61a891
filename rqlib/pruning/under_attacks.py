"""How accurate compressed networks are, on clean images and under three attacks: FGSM, PGD and WRM."""

import math
from dataclasses import dataclass, field

import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import attacks, measures
from rqlib.core import parametrizations, runtime
from rqlib.core.vocabulary import Attack
from rqlib.pruning.evaluation import Networks, accuracies
from rqlib.pruning.plans import Plan


def under_attacks(networks: Networks, plan: Plan, *, gamma: float, steps: int) -> DataFrame:
    """Accuracies of the networks of `rivals.joint` on the plan's test images, one row per network.

    FGSM and PGD stay in the plan's ball; PGD is that of `Plan.era`. WRM has no ball: ``gamma`` and ``steps`` say how
    far it moves an image (the paper's code has 1.3 and 3 for MNIST, 20 and 7 for CIFAR), and how far it moved them is
    reported. Its accuracy is not comparable to those at the ball's radius.

    Returns:
        The columns rival, kept, clean_accuracy, fgsm_accuracy, robust_accuracy (PGD), wrm_accuracy, and the mean size
        of WRM's changes in pixels of [0, 1]: wrm_linf_255 (times 255) and wrm_l2.
    """
    fgsm = attacks.named("fgsm", ball=plan.ball)
    wrm = attacks.named("wrm", gamma=gamma, steps=steps)
    rows = []
    for (rival, kept), network in networks.items():
        plain, moved = parametrizations.bake(network), Moved(wrm)
        row = {"rival": rival, "kept": kept, **accuracies(plain, plan, f"era-{rival}-{kept}")}
        row["fgsm_accuracy"] = measures.accuracy(plain, *plan.images.test, attack=fgsm)
        with runtime.exact():  # in bfloat16 some images would be attacked, and so counted, twice
            row["wrm_accuracy"] = measures.accuracy(plain, *plan.images.test, attack=moved)
        rows.append(row | {"wrm_linf_255": moved.mean(math.inf) * 255, "wrm_l2": moved.mean(2)})
    return DataFrame(rows)


@dataclass
class Moved:
    """An attack that remembers by how much it changed each image, one tensor of changes (B, C H W) per batch."""

    attack: Attack
    changes: list[Tensor] = field(default_factory=list)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        adversarial = self.attack(model, x, y)
        self.changes.append((adversarial - x).detach().float().flatten(1).cpu())
        return adversarial

    def mean(self, order: float) -> float:
        """The mean over all images of the norm of this order."""
        return torch.cat(self.changes).norm(order, dim=1).mean().item()
