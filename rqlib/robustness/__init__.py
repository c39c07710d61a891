"""Can a figure of robustness be believed?"""

from rqlib.robustness.curves import against_epsilon
from rqlib.robustness.diagnostics import run as diagnose
from rqlib.robustness.quantized_networks import quantized, study

__all__ = ["against_epsilon", "diagnose", "quantized", "study"]
