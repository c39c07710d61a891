"""``python -m rqlib.data NAME``: download an image set, or prepare an image folder, and say what is in it."""

import argparse

from rqlib.data import datasets, sources


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rqlib.data", description="Download an image set, or prepare an image folder; say what is in it."
    )
    parser.add_argument("name", help=f"{' | '.join(sources.SOURCES)} | imagefolder:PATH")
    parser.add_argument("--root", help="folder of image sets (default: RQLIB_DATA, else data/ of the project)")
    arguments = parser.parse_args()
    try:
        print(datasets.load(arguments.name, arguments.root))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None


_main()
