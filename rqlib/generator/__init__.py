"""And without data? Images made from a trained network alone, and what they tell of its quantization."""

from rqlib.generator.adjustment import adjust, adjust_all
from rqlib.generator.batchnorm import keeping as batchnorms
from rqlib.generator.feature_map import map_features
from rqlib.generator.migration import calibrations, losses, measured_before, migrate, rows, score
from rqlib.generator.mixtures import superposed
from rqlib.generator.network import build, load, save
from rqlib.generator.quality import assess, doubt
from rqlib.generator.refining import refine, refined
from rqlib.generator.sampling import boundary, sample
from rqlib.generator.sizes import PAPER, SMALL
from rqlib.generator.training import fit
from rqlib.prediction import agreement, relative

__all__ = [
    "PAPER",
    "SMALL",
    "adjust",
    "adjust_all",
    "agreement",
    "assess",
    "batchnorms",
    "boundary",
    "build",
    "calibrations",
    "doubt",
    "fit",
    "load",
    "losses",
    "map_features",
    "measured_before",
    "migrate",
    "refine",
    "refined",
    "relative",
    "rows",
    "sample",
    "save",
    "score",
    "superposed",
]
