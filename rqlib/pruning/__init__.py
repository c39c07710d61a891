"""Which weights does a network need?"""

from rqlib.pruning.algorithms import METHODS, run
from rqlib.pruning.certificates import Smoothing, certified, one_table, smoothed
from rqlib.pruning.channels import remove as remove_channels
from rqlib.pruning.comparison import claims, compare
from rqlib.pruning.evaluation import eight_bits, score, verdict
from rqlib.pruning.experiments import ablate, hidden, methods
from rqlib.pruning.masks import apply_masks, magnitude_masks
from rqlib.pruning.masks import check as check_masks
from rqlib.pruning.packed import save as pack
from rqlib.pruning.plans import Plan
from rqlib.pruning.published import beside_paper, is_setting_of_paper
from rqlib.pruning.rivals import RIVALS, check_joint, joint
from rqlib.pruning.savings import filters, on_disk
from rqlib.pruning.true_sizes import factor_shares, sizes

__all__ = [
    "METHODS",
    "RIVALS",
    "Plan",
    "Smoothing",
    "ablate",
    "apply_masks",
    "beside_paper",
    "certified",
    "check_joint",
    "check_masks",
    "claims",
    "compare",
    "eight_bits",
    "factor_shares",
    "filters",
    "hidden",
    "is_setting_of_paper",
    "joint",
    "magnitude_masks",
    "methods",
    "on_disk",
    "one_table",
    "pack",
    "remove_channels",
    "run",
    "score",
    "sizes",
    "smoothed",
    "verdict",
]
