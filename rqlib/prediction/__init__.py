"""What will quantization cost, before it is done?"""

from rqlib.prediction.features import table
from rqlib.prediction.fits import fit
from rqlib.prediction.forecasting import predict as forecast
from rqlib.prediction.forecasting import recommend
from rqlib.prediction.ranking import leaderboard

__all__ = ["fit", "forecast", "leaderboard", "recommend", "table"]
