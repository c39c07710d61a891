"""Finished rows are found again, whole, and only by the experiment they belong to."""

import pandas
import pytest
import torch

from rqlib.core import ledger as core_ledger
from rqlib.core.ledger import Ledger

ROWS = [{"format": "INT_8", "accuracy": 0.1 + 0.2, "twin": None}, {"format": "INT_4", "accuracy": 0.5, "twin": "POT_2"}]


def ledger(path, fingerprint="a"):
    return Ledger(path, key=["format"], fingerprint=fingerprint)


def test_rows_survive_exactly(tmp_path):
    path = tmp_path / "folder" / "rows.parquet"
    first = ledger(path)
    for row in ROWS:
        first.append(row)
    second = ledger(path)
    assert ("INT_8",) in second
    assert ("INT_2",) not in second
    assert second["INT_8",]["accuracy"] == 0.1 + 0.2
    pandas.testing.assert_frame_equal(second.frame(), first.frame(), check_dtype=False)
    assert [file.name for file in path.parent.iterdir()] == ["rows.parquet"]


def test_in_memory_alone(tmp_path):
    rows = ledger(None)
    rows.append(ROWS[0])
    assert len(rows.frame()) == 1
    assert not list(tmp_path.iterdir())


def test_a_row_is_replaced_by_a_newer_one():
    rows = ledger(None)
    rows.append(ROWS[0])
    rows.append({**ROWS[0], "accuracy": 1.0})
    assert rows.frame().accuracy.tolist() == [1.0]


def test_another_experiments_rows_are_refused(tmp_path):
    ledger(tmp_path / "rows.parquet").append(ROWS[0])
    with pytest.raises(ValueError, match="holds the rows of another network, other images or other settings"):
        ledger(tmp_path / "rows.parquet", fingerprint="b")


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="not a table of finished rows"):
        ledger(tmp_path / "rows.parquet")


def test_a_crash_while_writing_leaves_the_rows_as_they_were(tmp_path, monkeypatch):
    rows = ledger(tmp_path / "rows.parquet")
    rows.append(ROWS[0])

    def crash(self, path):
        path.write_bytes(b"half a")
        raise OSError("disk full")

    monkeypatch.setattr(pandas.DataFrame, "to_parquet", crash)
    with pytest.raises(OSError, match="disk full"):
        rows.append(ROWS[1])
    monkeypatch.undo()
    assert ledger(tmp_path / "rows.parquet").frame().format.tolist() == ["INT_8"]


def test_fingerprints_tell_values_apart():
    state = {"weight": torch.ones(2), "bias": torch.zeros(1)}
    same = core_ledger.fingerprint(state, torch.arange(3), "minmax", ("js",))
    assert same == core_ledger.fingerprint({**state}, torch.arange(3), "minmax", ("js",))
    others = [
        core_ledger.fingerprint({**state, "bias": torch.full((1,), 1e-30)}, torch.arange(3), "minmax", ("js",)),
        core_ledger.fingerprint(state, torch.arange(3) + 1, "minmax", ("js",)),
        core_ledger.fingerprint(state, torch.arange(3), "mse", ("js",)),
        core_ledger.fingerprint(state, torch.arange(3), "minmax", ()),
    ]
    assert len({same, *others}) == 5
