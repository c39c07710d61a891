"""How is a network trained, and for what? `profile`, of the chapter `measures`, says what the network costs."""

from rqlib.measures import profile
from rqlib.training.loop import fit, weights
from rqlib.training.objectives import initialize, penalized, robust
from rqlib.training.objectives import named as objective
from rqlib.training.outcome import score, summary
from rqlib.training.recipes import recipe
from rqlib.training.several_seeds import each_seed
from rqlib.training.variants import variant

__all__ = [
    "each_seed",
    "fit",
    "initialize",
    "objective",
    "penalized",
    "profile",
    "recipe",
    "robust",
    "score",
    "summary",
    "variant",
    "weights",
]
