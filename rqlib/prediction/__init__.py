"""What will quantization cost, before it is done?"""

from rqlib.prediction.anatomy import plain_features
from rqlib.prediction.features import complete, overview, table
from rqlib.prediction.features import names as predictors
from rqlib.prediction.fits import coverage, fit, fit_each, scores
from rqlib.prediction.forecasting import recommend, verdict
from rqlib.prediction.new_network import familiarity, forecast, judged_by_network
from rqlib.prediction.published import read_table, was_attacked
from rqlib.prediction.ranking import leaderboard, leave_out
from rqlib.prediction.relative_accuracy import agreement, relative
from rqlib.prediction.settings import measured_with, setting
from rqlib.prediction.shipped import enough, reference
from rqlib.prediction.weights_only import similarity_rows

__all__ = [
    "agreement",
    "complete",
    "coverage",
    "enough",
    "familiarity",
    "fit",
    "fit_each",
    "forecast",
    "judged_by_network",
    "leaderboard",
    "leave_out",
    "measured_with",
    "overview",
    "plain_features",
    "predictors",
    "read_table",
    "recommend",
    "reference",
    "relative",
    "scores",
    "setting",
    "similarity_rows",
    "table",
    "verdict",
    "was_attacked",
]
