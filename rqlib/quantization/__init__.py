"""What does a network lose in a number format, where, and which formats are enough?"""

from rqlib.quantization.choosing import smallest
from rqlib.quantization.formats import FLOAT, GRID, INT, POT, Format, parse
from rqlib.quantization.integer import lower
from rqlib.quantization.mixed_precision import allocate, score_mixes
from rqlib.quantization.post_training import ptq
from rqlib.quantization.similarity import compare
from rqlib.quantization.sweeping import sweep

__all__ = [
    "FLOAT",
    "GRID",
    "INT",
    "POT",
    "Format",
    "allocate",
    "compare",
    "lower",
    "parse",
    "ptq",
    "score_mixes",
    "smallest",
    "sweep",
]
