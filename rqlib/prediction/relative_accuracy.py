"""What quantized networks keep of their accuracy, on generated images and on real ones.

The relative accuracy of a quantized network is its accuracy divided by the float network's on the same images and
under the same attack. The claim to be judged is y = x: what the network keeps on generated images is what it keeps on
real ones. Then generated images predict the loss, clean and attacked, without data.

Both sides are measured on a few hundred images, so that they differ even where the claim holds. How much of their
disagreement is no more than that, and whether there is anything to predict beyond it, stands beside every score.
"""

from collections.abc import Sequence

import numpy
import pandas
import scipy
from pandas import DataFrame, Series

from rqlib.prediction import fits, published
from rqlib.prediction.published import FLOAT, NETWORK

SIDES = ("test", "pseudo")
ERRORS = tuple(f"{side}_error" for side in SIDES)
GUESSING = 2.0
"""A network guesses if its clean accuracy is less than so many standard errors above chance."""


def relative(rows: DataFrame) -> DataFrame:
    """Relative accuracies: one row per network, generator, attack and format.

    Columns: test and pseudo; where the rows say on how many ``robust_images`` they were measured, their standard errors
    test_error and pseudo_error; where they say the ``num_classes``, at_chance: whether the quantized network only
    guesses on real images that nobody attacks.

    The float network is right on m images; the quantized one keeps the share s of them. The standard error is that
    of a binomial share of m, ``sqrt(s' (1 - s') / (m + 4))``, ``s' = (m s + 2) / (m + 4)`` (Agresti and Coull 1998),
    which is not 0 where nothing is lost.

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
    found = joined[[*keys, "format"]].assign(attack=attack, **shares)
    if "robust_images" in joined:
        right = {side: joined.robust_images * joined[f"{side}_{attack}_float"] for side in SIDES}
        found = found.assign(**{f"{side}_error": _standard_error(shares[side], right[side]) for side in SIDES})
    if {"robust_images", "num_classes"} <= set(joined):
        found = found.assign(at_chance=_guesses(joined.test_clean, joined.robust_images, 1 / joined.num_classes))
    return found[measured]


def _standard_error(share: Series, images: Series) -> Series:
    """Of a share (at most 1) of a number of images."""
    near = (images * share.clip(upper=1) + 2) / (images + 4)
    return (near * (1 - near) / (images + 4)) ** 0.5


def _guesses(accuracy: Series, images: Series, chance: Series) -> Series:
    return accuracy < chance + GUESSING * (chance * (1 - chance) / images) ** 0.5


def agreement(frame: DataFrame, by: Sequence[str] = ("generator", "attack")) -> DataFrame:
    """How well relative accuracy on generated images tells that on real ones: one row per group.

    Columns: rows, and

    - mae: the mean absolute error of the claim;
    - identity_r2, which judges the claim test = pseudo: ``1 - sum (y - x)^2 / sum (y - mean y)^2``; it is negative
      where the mean is nearer to the truth, and not given where the truth varies by less than its standard errors,
      because there is nothing to predict then;
    - linear_r2: the same for the best straight line;
    - spearman: the correlation of ranks;
    - above_chance_r2: identity_r2 without formats in which the network only guesses, and guessing: the number of these;
    - sampling: the root mean square difference of both sides that their standard errors alone make, and explained:
      the share of the squared disagreement that this explains, at most 1.

    The last two items are there if the frame has the columns for them.

    The columns ``by`` make the groups; the frame is that of `relative`. Without rows it has no group.
    """
    if frame.empty:
        return DataFrame(columns=[*by, "rows", *_agreement(frame)])
    read = [name for name in (*SIDES, *ERRORS, "at_chance") if name in frame]
    groups = frame.groupby([*by], sort=False)[read]
    scores = groups.apply(lambda some: pandas.Series(_agreement(some)))
    return groups.size().rename("rows").to_frame().join(scores).reset_index()


def _agreement(some: DataFrame) -> dict[str, float]:
    varies = some.test.nunique() > 1 and some.pseudo.nunique() > 1
    line = scipy.stats.pearsonr(some.pseudo, some.test).statistic ** 2 if varies else numpy.nan
    order = scipy.stats.spearmanr(some.pseudo, some.test).statistic if varies else numpy.nan
    claimed = _claimed(some)
    found = {"mae": claimed["mae"], "identity_r2": claimed["r2"], "linear_r2": line, "spearman": order}
    if "at_chance" in some:
        guessing = some.at_chance.astype(bool)
        found |= {"above_chance_r2": _claimed(some[~guessing])["r2"], "guessing": guessing.sum()}
    if set(ERRORS) <= set(some):
        sampled = (some[[*ERRORS]] ** 2).sum(axis=1).mean()
        squared = ((some.test - some.pseudo) ** 2).mean()
        found |= {"sampling": sampled**0.5, "explained": min(1.0, sampled / squared) if squared else 1.0}
    return found


def _claimed(some: DataFrame) -> dict[str, float]:
    """The scores of the claim test = pseudo; no R2 where the truth varies by less than its standard errors."""
    if some.empty:
        return {"r2": numpy.nan, "mae": numpy.nan}
    found = fits.scores(some.test, some.pseudo)
    noise = (some.test_error**2).mean() ** 0.5 if "test_error" in some else 0.0
    return found if some.test.std(ddof=0) > noise else found | {"r2": numpy.nan}
