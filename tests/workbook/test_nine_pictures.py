"""The pictures of the nine networks."""

from pathlib import Path

import pandas
import pytest

from rqlib.workbook import nine_pictures

TABLE = Path(__file__).parents[2] / "outputs/reference/pseudo.csv"


def test_one_panel_per_network_and_one_per_set_of_images_and_attack():
    rows = pandas.read_csv(TABLE)
    rows = rows[rows.ranges.isna()] if "ranges" in rows else rows
    made = nine_pictures.of_table(rows)
    panels = {name: [note.text for note in figure.layout.annotations] for name, figure in made.items()}
    assert len(panels["nine_curves"]) >= rows.model.nunique()
    assert any(text.startswith("ResNet_18: R<sup>2</sup> = 0.9") for text in panels["nine_curves"])
    assert {text.split(":")[0] for text in panels["nine_relative"]} >= {"boundary, clean", "boundary, pgd"}
    assert not any("fgsm" in text for text in panels["nine_relative"])


def test_a_data_set_without_rows_is_named(monkeypatch):
    monkeypatch.setattr(nine_pictures.pandas, "read_csv", lambda path: pandas.DataFrame({"dataset": ["digits"]}))
    with pytest.raises(ValueError, match="expected one of the data sets digits, got 'mnist'"):
        nine_pictures.main(["mnist"])
