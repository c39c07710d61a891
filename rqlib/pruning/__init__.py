"""Which weights does a network need?"""

from rqlib.pruning.algorithms import METHODS, run
from rqlib.pruning.channels import remove as remove_channels
from rqlib.pruning.packed import save as pack

__all__ = ["METHODS", "pack", "remove_channels", "run"]
