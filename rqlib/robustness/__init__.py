"""Can a figure of robustness be believed?"""

from rqlib.measures import transfer_matrix as transfer
from rqlib.robustness.curves import against_epsilon, geometries
from rqlib.robustness.diagnostics import CHECKS, diagnose
from rqlib.robustness.plane import decision_slice, loss_surface
from rqlib.robustness.quantized_networks import quantized, study
from rqlib.robustness.withstanding import battery

__all__ = [
    "CHECKS",
    "against_epsilon",
    "battery",
    "decision_slice",
    "diagnose",
    "geometries",
    "loss_surface",
    "quantized",
    "study",
    "transfer",
]
