"""What does a network lose in a number format, where, and which formats are enough?"""

from rqlib.quantization.choosing import smallest, verdict
from rqlib.quantization.deployment import deploy, deployed
from rqlib.quantization.formats import FLOAT, GRID, INT, POT, Format, parse
from rqlib.quantization.gradients import gradient_sensitivity, rank_correlation
from rqlib.quantization.integer import lower
from rqlib.quantization.mixed_precision import allocate, score_mixes
from rqlib.quantization.onnx_export import export
from rqlib.quantization.post_training import ptq
from rqlib.quantization.repairs import score_repairs
from rqlib.quantization.similarity import compare
from rqlib.quantization.sweeping import sweep, sweep_sets

__all__ = [
    "FLOAT",
    "GRID",
    "INT",
    "POT",
    "Format",
    "allocate",
    "compare",
    "deploy",
    "deployed",
    "export",
    "gradient_sensitivity",
    "lower",
    "parse",
    "ptq",
    "rank_correlation",
    "score_mixes",
    "score_repairs",
    "smallest",
    "sweep",
    "sweep_sets",
    "verdict",
]
