"""What quantized networks keep of their accuracy, on generated images and on real ones.

The relative accuracy of a quantized network is its accuracy divided by the float network's on the same images and
under the same attack. The claim to be judged is y = x: what the network keeps on generated images is what it keeps on
real ones. Then generated images predict the loss, clean and attacked, without data.
"""

from collections.abc import Sequence

import numpy
import pandas
import scipy.stats
from pandas import DataFrame

from rqlib.prediction import fits, published
from rqlib.prediction.published import FLOAT, NETWORK

SIDES = ("test", "pseudo")


def relative(rows: DataFrame) -> DataFrame:
    """Relative accuracies: one row per network, generator, attack and format, with the columns test and pseudo.

    Formats that were not attacked are left out. A network whose float accuracy under an attack is 0 has no relative
    accuracy there: its rows are left out too, and their number is printed.

    Args:
        rows: accuracies in either form (`published.by_generator`). Networks are told apart by the column ``run`` and
            those of `published.NETWORK`, as far as the rows have them; every network has a row FP32.

    Raises:
        ValueError: columns are missing; a network has no row FP32.
    """
    rows = published.by_generator(rows)
    published.require(rows, ("format", "generator", "test_clean", "pseudo_clean"), "relative accuracies")
    keys = [name for name in ("run", *NETWORK, "generator") if name in rows]
    under = [name.removeprefix("pseudo_") for name in rows if name.startswith("pseudo_") and f"test{name[6:]}" in rows]
    joined = _beside_float(rows, keys, [f"{side}_{attack}" for attack in under for side in SIDES])
    frame = pandas.concat([_under(attack, joined, keys) for attack in under], ignore_index=True)
    known = frame.dropna(subset=[*SIDES])
    if len(known) < len(frame):
        print(f"{len(frame) - len(known)} of {len(frame)} rows left out: the float network's accuracy there is 0")
    return known.reset_index(drop=True)


def _beside_float(rows: DataFrame, keys: list[str], columns: list[str]) -> DataFrame:
    """Rows of quantized networks, with the float network's accuracies in columns ``*_float``."""
    whole = rows[rows.format == FLOAT].set_index(keys)[columns]
    joined = rows[rows.format != FLOAT].merge(whole, how="left", on=keys, suffixes=("", "_float"), validate="m:1")
    if joined[[f"{name}_float" for name in columns]].isna().any(axis=None):
        raise ValueError(f"expected a row {FLOAT} of every network and generator, found some without")
    return joined


def _under(attack: str, joined: DataFrame, keys: list[str]) -> DataFrame:
    """Relative accuracies under one attack, of the formats that were attacked; NaN where the float accuracy is 0."""
    shares = {
        side: joined[f"{side}_{attack}"] / joined[f"{side}_{attack}_float"].replace(0, numpy.nan) for side in SIDES
    }
    measured = joined[[f"{side}_{attack}" for side in SIDES]].notna().all(axis=1)
    return joined[[*keys, "format"]].assign(attack=attack, **shares)[measured]


def agreement(frame: DataFrame, by: Sequence[str] = ("generator", "attack")) -> DataFrame:
    """How well relative accuracy on generated images tells that on real ones: one row per group.

    Columns: rows, and

    - identity_r2, which judges the claim test = pseudo: ``1 - sum (y - x)^2 / sum (y - mean y)^2``; it is negative
      where the mean is nearer to the truth;
    - linear_r2: the same for the best straight line;
    - spearman: the correlation of ranks;
    - mae: the mean absolute error of the claim.

    The columns ``by`` make the groups; the frame is that of `relative`.
    """
    groups = frame.groupby([*by], sort=False)[[*SIDES]]
    scores = groups.apply(lambda some: pandas.Series(_agreement(some)))
    return groups.size().rename("rows").to_frame().join(scores).reset_index()


def _agreement(some: DataFrame) -> dict[str, float]:
    identity = fits.scores(some.test, some.pseudo)
    varies = some.test.nunique() > 1 and some.pseudo.nunique() > 1
    line = scipy.stats.pearsonr(some.pseudo, some.test).statistic ** 2 if varies else numpy.nan
    order = scipy.stats.spearmanr(some.pseudo, some.test).statistic if varies else numpy.nan
    return {"identity_r2": identity["r2"], "linear_r2": line, "spearman": order, "mae": identity["mae"]}
