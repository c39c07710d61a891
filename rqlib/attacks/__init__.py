"""How is an image changed to fool a network?"""

from rqlib.attacks.methods import fgsm, named, noise, none, pace, pgd, wrm
from rqlib.core.projections import L2, Linf

__all__ = ["L2", "Linf", "fgsm", "named", "noise", "none", "pace", "pgd", "wrm"]
