"""What will quantization cost, before it is done?"""

from rqlib.prediction.features import complete, table
from rqlib.prediction.features import names as predictors
from rqlib.prediction.fits import coverage, fit, fit_each, scores
from rqlib.prediction.forecasting import familiarity, recommend
from rqlib.prediction.new_network import forecast
from rqlib.prediction.published import read_csv, was_attacked
from rqlib.prediction.ranking import leaderboard
from rqlib.prediction.relative_accuracy import agreement, relative

__all__ = [
    "agreement",
    "complete",
    "coverage",
    "familiarity",
    "fit",
    "fit_each",
    "forecast",
    "leaderboard",
    "predictors",
    "read_csv",
    "recommend",
    "relative",
    "scores",
    "table",
    "was_attacked",
]
