"""How is a network trained, and for what?"""

from rqlib.training.loop import fit
from rqlib.training.objectives import named as objective
from rqlib.training.recipes import recipe

__all__ = ["fit", "objective", "recipe"]
