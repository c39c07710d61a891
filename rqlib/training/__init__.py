"""How is a network trained, and for what? `profile`, of the chapter `measures`, says what the network costs."""

from rqlib.measures import profile
from rqlib.training.loop import fit, weights
from rqlib.training.objectives import named as objective
from rqlib.training.objectives import robust
from rqlib.training.outcome import score, summary
from rqlib.training.recipes import recipe

__all__ = ["fit", "objective", "profile", "recipe", "robust", "score", "summary", "weights"]
