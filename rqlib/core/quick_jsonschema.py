"""Import jsonschema, which checks the form of notebooks, in a tenth of the time.

It builds a grammar of international addresses if the package rfc3987_syntax is installed, which takes two seconds in
every process, and no notebook holds an address that is checked. Import this module before papermill, nbformat and
plotly's widgets, which import jsonschema.
"""

import importlib
import sys

_GRAMMAR = "rfc3987_syntax"

if _GRAMMAR not in sys.modules:
    sys.modules[_GRAMMAR] = None  # not to be found while jsonschema is imported, which then goes without
    try:
        importlib.import_module("jsonschema")
    finally:
        del sys.modules[_GRAMMAR]
