"""The pictures of the README: the tagged figure of an executed notebook, of a reference table, and of a page."""

from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from rqlib.workbook import pictures
from rqlib.workbook.report import FIGURE

ROOT = Path(__file__).parents[2]


def executed(path, *tagged: bool):
    """A notebook of one figure per flag, its cell tagged or not."""
    cells = []
    for number, flag in enumerate(tagged):
        data = {FIGURE: go.Figure(go.Bar(y=[number])).to_plotly_json()}
        output = new_output("display_data", data=data)
        cells.append(new_code_cell(outputs=[output], metadata={"tags": ["picture"] if flag else []}))
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_the_tagged_figure_is_found(tmp_path):
    figure = pictures.of_notebook(executed(tmp_path / "a.ipynb", False, True, False))
    assert list(figure.data[0].y) == [1]


@pytest.mark.parametrize("tagged", [(False,), (True, True)])
def test_not_exactly_one_tagged_figure_is_an_error(tmp_path, tagged):
    with pytest.raises(ValueError, match="a.ipynb: expected one figure in a cell tagged 'picture', got"):
        pictures.of_notebook(executed(tmp_path / "a.ipynb", *tagged))


def test_every_format_of_a_reference_table_is_drawn():
    figure = pictures.of_table(ROOT / "outputs/reference/quantize.csv", "ResNet_18")
    assert {trace.name for trace in figure.data} == {"INT", "POT", "FLOAT", "undominated", "float32"}
    assert figure.layout.title.text == "ResNet_18 on CIFAR-10 (JPEG): accuracy against size"


def test_the_top_of_a_page_is_drawn_with_few_colors(tmp_path):
    pytest.importorskip("choreographer", reason="kaleido is not installed")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium on this machine")
    (tmp_path / "a.html").write_text("<body style='background: #0072B2'><script>document.body.append('drawn')</script>")
    pictures.of_page(tmp_path / "a.html", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawn:
        colors = {color for _, color in drawn.convert("RGB").getcolors()}
        assert drawn.size == pictures.SIZE
    assert (0, 0x72, 0xB2) in colors
    assert 1 < len(colors) <= 256
    with pytest.raises(FileNotFoundError, match="expected a page at .*b.html, found none; make it: python -m"):
        pictures.of_page(tmp_path / "b.html", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
