"""What makes a network harder to fool, and how far can a perturbation be stretched?"""

from rqlib.defenses.activations import AveragedRange, DDTReLU, DTReLU
from rqlib.defenses.defended import defend
from rqlib.defenses.gram import orthogonality
from rqlib.defenses.network_bounds import certified_radius, lipschitz
from rqlib.defenses.noise import add_noise, majority, with_members
from rqlib.defenses.penalties import named as penalty
from rqlib.defenses.spectra import norm_bound, operator_norm

__all__ = [
    "AveragedRange",
    "DDTReLU",
    "DTReLU",
    "add_noise",
    "certified_radius",
    "defend",
    "lipschitz",
    "majority",
    "norm_bound",
    "operator_norm",
    "orthogonality",
    "penalty",
    "with_members",
]
