"""What can be proved of pruned networks: certified beside empirical accuracy, as they are and in an INT format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas
from pandas import DataFrame
from torch import nn

from rqlib import certification, quantization
from rqlib.certification import smoothing
from rqlib.certification.cascade import BOUNDS
from rqlib.core import parametrizations
from rqlib.pruning.evaluation import CALIBRATION_IMAGES, Networks
from rqlib.pruning.plans import Plan

FLOAT = "float"


def certified(
    networks: Networks,
    plan: Plan,
    radii_255: Sequence[float],
    *,
    images: int,
    bits: int | None = 8,
    asked: Sequence[str] = BOUNDS,
) -> DataFrame:
    """The `certification.ladder` of each network, in float and in an INT format, on the first test images.

    A network for which no bounds are known is left out, with a warning.

    Args:
        radii_255: of L-infinity balls, in gray levels of 255.
        images: how many are certified.
        bits: of the format of weights and signals; None: float alone.
        asked: names of the bounds that are tried.

    Returns:
        One row per network, format and radius: method, kept, format, epsilon_255, and the accuracies clean, PGD, CROWN,
        CROWN-IBP and IBP, of which each is at most the one before; certified_images (their number), seconds.
    """
    test, radii, tables = plan.images.test.take(images), [radius / 255 for radius in radii_255], []
    for (method, kept), network in networks.items():
        for name, form in _forms(network, plan, bits).items():
            folder = plan.state(f"certified-{method}-{kept}-{name}")
            table = certification.ladder_if_known(form, *test, radii, asked=asked, folder=folder)
            tables.append(table.assign(method=method, kept=kept, format=name))
    if not tables:
        return DataFrame()
    whole = pandas.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    whole, first = whole.rename(columns={"images": "certified_images"}), ["method", "kept", "format"]
    return whole[[*first, *(name for name in whole if name not in first)]]


def one_table(tables: Mapping[str, DataFrame]) -> DataFrame:
    """The tables of `smoothed`, one below the other, with the column network."""
    return pandas.concat([table.assign(network=name) for name, table in tables.items()], ignore_index=True)


def title_of(method: str, kept: float) -> str:
    """``hydra 0.1``; ``dense`` for the whole network."""
    return method if kept == 1 else f"{method} {kept:g}"


def _forms(network: nn.Module, plan: Plan, bits: int | None) -> Mapping[str, nn.Module]:
    """Name of a format -> the network in it."""
    plain = parametrizations.bake(network)
    if bits is None:
        return {FLOAT: plain}
    calibration = plan.images.calibration(CALIBRATION_IMAGES)
    return {FLOAT: plain, f"INT_{bits}": quantization.ptq(plain, f"INT_{bits}", calibration)}


@dataclass(frozen=True)
class Smoothing:
    """How networks are certified by noise (`certification.smooth`).

    Attributes:
        sigma: of the noise, in pixels of [0, 1].
        radius: of the L2 ball that is asked for, in pixels; None: the largest that the draws certify.
        images: how many test images are certified.
        draws: for each of them; the last number is the most.

    Raises:
        ValueError: the draws do not increase, or cannot certify the radius.
    """

    sigma: float
    radius: float | None = None
    images: int = 100
    draws: Sequence[int] = (100, 1000)

    def __post_init__(self):
        smoothing.check_draws(self.draws, self.radius, self.sigma, smoothing.ALPHA)

    def certify(self, network: nn.Module, plan: Plan, state: str) -> DataFrame:
        """The table of `Smoothed.certify`; ``state`` is the name of the file, without ending, that it goes on from."""
        smoothed = certification.smooth(parametrizations.bake(network), sigma=self.sigma, seed=plan.seed)
        test = plan.images.test.take(self.images)
        return smoothed.certify(*test, radius=self.radius, draws=self.draws, checkpoint=plan.state(f"{state}.pt"))


def smoothed(networks: Networks, plan: Plan, noise: Smoothing) -> dict[str, DataFrame]:
    """Name of each network (`title_of`) -> its table of `Smoothing.certify`."""
    return {
        title_of(method, kept): noise.certify(network, plan, f"smoothed-{method}-{kept}")
        for (method, kept), network in networks.items()
    }
