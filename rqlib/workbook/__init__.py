"""Runs of notebooks: parameters, results, batch runs, reports."""

from rqlib.workbook.results import Run, collect, find, finished

__all__ = ["Run", "collect", "find", "finished"]
