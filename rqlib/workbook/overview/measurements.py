"""What was measured, from the tables of every notebook: one table with one row per figure."""

import warnings
from collections.abc import Iterable

from pandas import DataFrame

from rqlib.workbook.overview import adapters, pruned_runs
from rqlib.workbook.overview.kinds import COLUMNS
from rqlib.workbook.overview.networks import Source

ADAPTERS = {
    "01_train": adapters.training,
    "02_quantize": adapters.quantization,
    "03_fit": adapters.prediction,
    "04_generator": adapters.generation,
    "05_robust": adapters.attacks,
    "06_prune": pruned_runs.pruning,
}
"""Notebook -> what turns one of its runs into rows."""


def table(sources: Iterable[Source]) -> DataFrame:
    """The figures of all runs; figures that are not there (NaN) are left out.

    Returns:
        The columns

        - network (`networks.Network`); kind, of `kinds.KINDS`, and treatment: what was done to the network;
        - metric: of `kinds.METRICS`; within: the ball, for accuracies under attack and certified ones;
        - value; images: the number of images that a share is of, NaN if not known; low, high: the ends of an
          interval that the run itself gives;
        - how: the attack, or the bounds;
        - seed: tells repetitions of one treatment apart; report, started: of the run.
    """
    sources = list(sources)
    by_run = {source.folder: source for source in sources}
    rows = []
    for source in sources:
        notebook = source.record["notebook"]
        where = {"report": source.report, "started": source.record["started"]}
        if source.network or notebook == "03_fit":
            try:
                rows += [row | where for row in ADAPTERS[notebook](source, by_run)]
            except (KeyError, TypeError, IndexError) as error:
                lacks = f"expected tables as {notebook} writes them today, got none with {error}"
                warnings.warn(f"run left out: {source.folder}: {lacks}; run it again", stacklevel=2)
    frame = DataFrame(rows, columns=[*COLUMNS, "report", "started"])
    return frame[frame.value.notna()].astype({"value": float, "images": float, "low": float, "high": float})
