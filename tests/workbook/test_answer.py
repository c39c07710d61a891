"""The box with the answer: what it says of the key figures."""

import pytest

from rqlib.workbook import answer

RECORD = {"notebook": "02_quantize", "answer": "INT_8 is <enough>.", "title": "SmallCNN on digits", "summary": {}}


def test_the_box_has_the_sentence_the_title_and_the_known_figures():
    figures = {"float_accuracy": 0.98765, "weights": 83170, "best": None, "coverage": float("nan"), "fails": 0}
    box = answer.box(RECORD | {"summary": figures})
    assert "<b>INT_8 is &lt;enough&gt;.</b>" in box
    assert 'data-title="02_quantize: SmallCNN on digits"' in box
    assert "<td>float accuracy</td><td><b>0.9877</b>" in box
    assert "<b>83,170</b>" in box
    assert "<td>fails</td><td><b>0</b>" in box
    assert "best" not in box
    assert "coverage" not in box


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (15.0, "15"), (1234567, "1,234,567"), (True, "True"), (1.0, "1"), ("a<b", "a&lt;b")],
)
def test_values(value, text):
    assert answer.shown(value) == text


def test_names_are_said_in_words():
    assert answer.in_words("held_out_mae") == "on networks left out: mean absolute error"


def test_outside_a_notebook_nothing_is_displayed(capsys):
    answer.show(RECORD)
    assert capsys.readouterr().out == ""
