"""How large the experiments are: as in the paper, or a tenth of that work."""

from dataclasses import dataclass
from functools import partial

from rqlib import attacks
from rqlib.core.vocabulary import Attack


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        channels: of the generator's first maps.
        steps: optimizer steps per epoch of `generator.fit`.
        batch_size: images per step.
        attack_steps: gradient steps of PGD.
        adjust_steps: optimizer steps per round of `generator.adjust`.
        adjust_images: images that the accuracies of a round are measured on.
    """

    channels: int
    steps: int
    batch_size: int
    attack_steps: int
    adjust_steps: int
    adjust_images: int

    def attacks(self, epsilon: float) -> dict[str, Attack]:
        """Name -> attack, FGSM and PGD in the L-infinity ball of this radius (in pixels of [0, 1]).

        PGD takes ``attack_steps`` steps and leaves an image alone as soon as it is misclassified.
        """
        ball = attacks.Linf(epsilon)
        pgd = partial(attacks.pgd, ball=ball, **attacks.pace(ball, self.attack_steps), active_set=True)
        return {"fgsm": partial(attacks.fgsm, ball=ball), "pgd": pgd}


PAPER = Size(channels=128, steps=200, batch_size=128, attack_steps=10, adjust_steps=1, adjust_images=2560)
"""As in the paper (Qimera, Choi et al. 2021, arXiv 2111.02625), for a GPU."""

SMALL = Size(channels=32, steps=50, batch_size=64, attack_steps=5, adjust_steps=8, adjust_images=200)
"""About a tenth of the work of `PAPER`, for a CPU."""
