"""The pictures of the README: the page of all runs, one figure of each notebook's latest run, one reference table.

python -m rqlib.workbook.pictures      writes outputs/reference/figures/*.svg and index.png

A notebook's picture is the figure of its cell that is tagged ``picture``. Needs kaleido and a Chromium.
"""

import json
import subprocess
from pathlib import Path

from rqlib.core import quick_jsonschema  # noqa: F401 - before nbformat imports it

# isort: split
import nbformat
import pandas
import plotly.graph_objects as go
from PIL import Image
from plotly import io as plotly_io

from rqlib.core import files
from rqlib.quantization import figures
from rqlib.workbook import results
from rqlib.workbook.report import FIGURE

TAG = "picture"
WIDTH = 900
"""Of a picture whose figure follows the window."""
REFERENCE = Path("outputs/reference")
SIZE = 1200, 1400
"""Width and height of the picture of a page, in pixels."""


def of_notebook(path: str | Path, tag: str = TAG) -> go.Figure:
    """The figure of an executed notebook's cell that has this tag.

    Raises:
        ValueError: there is not exactly one such figure.
    """
    cells = [cell for cell in nbformat.read(path, 4).cells if tag in cell.metadata.get("tags", [])]
    outputs = [output.data for cell in cells for output in cell.outputs if FIGURE in output.get("data", {})]
    if len(outputs) != 1:
        raise ValueError(f"{path}: expected one figure in a cell tagged {tag!r}, got {len(outputs)}")
    return plotly_io.from_json(json.dumps(outputs[0][FIGURE]), skip_invalid=True)


def of_table(path: str | Path, model: str) -> go.Figure:
    """Accuracy against size in every format, of one network of the reference table ``quantize.csv``."""
    rows = pandas.read_csv(path)
    rows = rows[rows.model == model].reset_index(drop=True)
    return figures.frontier(rows, int(rows.test_images[0]), title=f"{model} on {rows.images[0]}: accuracy against size")


def of_page(path: str | Path, picture: str | Path) -> None:
    """Write the top of an HTML page, as a browser draws it, as a PNG of 256 colors and `SIZE` pixels.

    Raises:
        FileNotFoundError: there is no such page, or no Chromium.
    """
    from choreographer.browsers.chromium import Chromium  # comes with kaleido, which only this command needs

    path, browser = Path(path).resolve(), Chromium.find_browser(skip_local=False)
    if not path.is_file():
        raise FileNotFoundError(f"expected a page at {path}, found none; make it: python -m rqlib.workbook.overview")
    if browser is None:
        raise FileNotFoundError("expected a Chromium on this machine, found none; Debian: apt-get install chromium")
    with files.atomic(picture) as part:
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=10000"]
        options += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={part}", path.as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=120)
        with Image.open(part) as drawn:
            drawn.convert("RGB").quantize(256).save(part, optimize=True)


def write(figure: go.Figure, path: Path) -> Path:
    """Write a figure as SVG; returns the path."""
    with files.atomic(path) as part:
        figure.write_image(part, format="svg", width=figure.layout.width or WIDTH)
    return path


def main() -> None:
    """The command line."""
    folder = files.project_root() / REFERENCE
    (folder / "figures").mkdir(exist_ok=True)
    made = {"quantize": of_table(folder / "quantize.csv", "ResNet_18")}
    for notebook in sorted((files.project_root() / "notebooks").glob("*.ipynb")):
        made[notebook.stem] = of_notebook(results.find(notebook.stem) / "notebook.ipynb")
    for name, figure in made.items():
        print(write(figure, folder / "figures" / f"{name}.svg"))
    of_page(results.outputs_folder() / "index.html", folder / "figures/index.png")
    print(folder / "figures/index.png")


if __name__ == "__main__":
    main()
