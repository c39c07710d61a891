"""jsonschema is imported without the grammar that takes two seconds, and both still work."""

import subprocess
import sys

PROGRAM = """
import sys
from rqlib.core import quick_jsonschema
assert "rfc3987_syntax" not in sys.modules, "the grammar was built, or its name is still taken"
import jsonschema, nbformat
assert "iri" not in jsonschema.FormatChecker.checkers
nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]))
try:
    nbformat.validate({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "odd"}]})
except nbformat.ValidationError:
    print("refused")
"""


def test_a_fresh_process_goes_without_and_still_checks_notebooks():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr


def test_it_changes_nothing_where_the_grammar_is_there_already():
    late = "import rfc3987_syntax, sys\nfrom rqlib.core import quick_jsonschema\n"
    late += "assert rfc3987_syntax is sys.modules['rfc3987_syntax']"
    assert subprocess.run([sys.executable, "-c", late]).returncode == 0
