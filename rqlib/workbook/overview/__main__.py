"""Write ``outputs/index.html``, one page for all finished runs.

python -m rqlib.workbook.overview
"""

import argparse

from rqlib.workbook import results, summary
from rqlib.workbook.overview import measurements, networks, page, treatments


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rqlib.workbook.overview", description="One page for all runs.")
    parser.parse_args(arguments)
    outputs = results.outputs_folder()
    try:
        found = networks.sources(summary.notebooks())
        if not found:
            raise ValueError(f"expected a finished run in {outputs}, found none; make one: make workbook")
        sections = treatments.sections(measurements.table(found))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    unfinished = sum(len(results.unfinished(name)) for name in summary.notebooks())
    page.write(outputs / "index.html", sections, found, unfinished=unfinished)
    print(f"open {outputs / 'index.html'}")


if __name__ == "__main__":
    main()
