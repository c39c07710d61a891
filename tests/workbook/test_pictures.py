"""The pictures of the README: the tagged figure of an executed notebook, and a figure of a reference table."""

from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

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
    assert {trace.name for trace in figure.data} == {"INT", "POT", "FLOAT", "undominated"}
    assert figure.layout.title.text == "ResNet_18 on CIFAR-10 (JPEG): accuracy against size"
