"""Runs of notebooks: the network they open, their parameters and results, batch runs, reports."""

from rqlib.workbook.chance import beside_chance
from rqlib.workbook.defended_runs import defended
from rqlib.workbook.opening import network, others, title_of
from rqlib.workbook.recording import Run
from rqlib.workbook.report_tables import in_words
from rqlib.workbook.results import collect, find, finished
from rqlib.workbook.seeds import with_other_seeds

__all__ = [
    "Run",
    "beside_chance",
    "collect",
    "defended",
    "find",
    "finished",
    "in_words",
    "network",
    "others",
    "title_of",
    "with_other_seeds",
]
