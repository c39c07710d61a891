"""How is an image changed to fool a network?"""

from rqlib.attacks.methods import fgsm, named, noise, noisy_fgsm, none, pace, pgd, wrm
from rqlib.core.projections import BALLS, L2, Linf

__all__ = ["BALLS", "L2", "Linf", "fgsm", "named", "noise", "noisy_fgsm", "none", "pace", "pgd", "wrm"]
