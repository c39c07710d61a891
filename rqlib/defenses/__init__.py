"""What makes a network harder to fool, and how far can a perturbation be stretched?"""

from rqlib.defenses.activation_costs import costs
from rqlib.defenses.activation_signals import curves, first_signal, signals, started
from rqlib.defenses.activations import AveragedRange, DDTReLU, DTReLU
from rqlib.defenses.defended import defend
from rqlib.defenses.gram import orthogonality
from rqlib.defenses.known_mistakes import levels_left
from rqlib.defenses.measured_ratios import ratios
from rqlib.defenses.network_bounds import certified_radius, lipschitz
from rqlib.defenses.noise import add_noise, majority, with_members
from rqlib.defenses.norms_of_layers import layer_norms
from rqlib.defenses.penalties import named as penalty
from rqlib.defenses.spectra import norm_bound, operator_norm

__all__ = [
    "AveragedRange",
    "DDTReLU",
    "DTReLU",
    "add_noise",
    "certified_radius",
    "costs",
    "curves",
    "defend",
    "first_signal",
    "layer_norms",
    "levels_left",
    "lipschitz",
    "majority",
    "norm_bound",
    "operator_norm",
    "orthogonality",
    "penalty",
    "ratios",
    "signals",
    "started",
    "with_members",
]
