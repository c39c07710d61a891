"""Runs of notebooks: the network they open, their parameters and results, batch runs, reports."""

from rqlib.workbook.opening import network, others
from rqlib.workbook.results import Run, collect, find, finished

__all__ = ["Run", "collect", "find", "finished", "network", "others"]
