"""Tables in a report: few rows, columns in words, nothing where nothing is known."""

import re

import pandas
import pytest

from rqlib.workbook import report_tables


def cells(html: str, tag: str = "td") -> list[str]:
    return re.findall(rf"<{tag}[^>]*>([^<]*)</{tag}>", html)


def readable(frame: pandas.DataFrame) -> str:
    return report_tables.readable(frame.to_html())


def test_at_most_twelve_rows_are_shown_and_the_others_are_one_click_away():
    html = readable(pandas.DataFrame({"format": [f"INT_{n}" for n in range(2, 17)]}))
    shown, folded = html.split("<details>")
    assert shown.count("INT_") == 12
    assert folded.count("INT_") == 3
    assert "<summary>the other 3 of 15 rows</summary>" in folded
    assert "<details>" not in readable(pandas.DataFrame({"format": ["INT_2"] * 12}))


def test_columns_are_said_in_words_and_row_numbers_are_left_out():
    html = readable(pandas.DataFrame({"relative_error_macs": [0.1], "held_out_r2": [0.5]}))
    assert cells(html, "th") == ["relative error MACs", "held out R²"]
    assert cells(html) == ["0.1", "0.5"]


def test_units_and_abbreviations_are_said_as_people_do():
    names = ["epsilon_255", "without_eot", "p_holm", "title"]
    html = readable(pandas.DataFrame([[1.5, 0.5, 0.5, "a"]], columns=names))
    assert cells(html, "th") == ["epsilon (of 255)", "without EOT", "p (Holm)", "network"]


def test_relative_and_absolute_losses_are_told_apart():
    assert cells(readable(pandas.DataFrame({"points_lost": [1.0], "accuracy_loss": [0.02]})), "th") == [
        "points lost",
        "relative loss",
    ]


def test_an_index_that_says_something_stays_and_its_name_stands_above_it():
    frame = pandas.DataFrame({"accuracy": [0.1, 0.2]}, index=pandas.Index(["mix", "INT_4"], name="weights"))
    assert cells(readable(frame), "th") == ["weights", "accuracy", "mix", "INT_4"]
    numbered = pandas.DataFrame({"accuracy": [0.1]}, index=pandas.Index([0], name="seed"))
    assert cells(readable(numbered), "th") == ["seed", "accuracy", "0"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (["INT_8", None], ["INT_8", ""]),
        ([1.5, float("nan")], ["1.5", ""]),
        ([12.0, float("nan"), 3.0], ["12", "", "3"]),
        ([1.0, 0.0], ["1.0", "0.0"]),
        ([2.0, 0.5], ["2.0", "0.5"]),
        ([83170.0, 0.5], ["83170", "0.5"]),
    ],
)
def test_unknown_values_are_empty_and_whole_numbers_are_whole(values, shown):
    assert cells(readable(pandas.DataFrame({"value": values}))) == shown


def test_styled_tables_keep_their_colors():
    styled = pandas.DataFrame({"status": ["FAIL"] * 14}).style.map(lambda status: "background-color: #F6CFC2")
    html = report_tables.readable(styled.to_html())
    assert "the other 2 of 14 rows" in html
    assert html.count('_col0">FAIL') == 14
    assert "background-color: #F6CFC2" in html


def test_what_is_no_table_of_pandas_stays_as_it_is():
    assert report_tables.readable("<table><td>NaN</td></table>") == "<table><td>NaN</td></table>"


def test_tables_without_a_head_or_a_body_stay_as_they_are():
    odd = "<table><tr><td>a_b</td></tr></table><table><thead><tr><th>a_b</th></tr></thead></table>"
    assert report_tables.readable(odd) == odd
