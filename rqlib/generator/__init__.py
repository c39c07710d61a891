"""And without data? Images out of a trained network alone."""

from rqlib.generator.adjustment import adjust
from rqlib.generator.migration import forecast as migrate
from rqlib.generator.network import boundary, build, sample
from rqlib.generator.training import fit

__all__ = ["adjust", "boundary", "build", "fit", "migrate", "sample"]
