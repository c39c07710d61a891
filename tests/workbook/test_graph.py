"""The graph runs with one line per run on the terminal, and everything else in a log."""

import subprocess

import pytest

from rqlib.workbook import batch, graph
from tests.workbook.runs import start

SAID = ["Building DAG of jobs...", f"{graph.MARK}02_quantize tiny: INT_6 is enough (0:14)", "1 of 2 steps (50%) done"]


def snakemake_that(says: list[str], code: int):
    """In place of the real one: a process that prints these lines and ends with this code."""
    printing = f"import sys; print(*{says!r}, sep=chr(10)); sys.exit({code})"
    popen = subprocess.Popen
    return lambda command, **options: popen([command[0], "-c", printing], **options)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def test_marked_lines_are_shown_and_all_are_kept(outputs, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", snakemake_that(SAID, 0))
    graph.main([])
    assert capsys.readouterr().out == "02_quantize tiny: INT_6 is enough (0:14)\n"
    assert (outputs / "workbook.log").read_text(encoding="utf-8").splitlines() == SAID


def test_a_run_that_fails_names_the_log(outputs, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", snakemake_that(SAID, 1))
    with pytest.raises(SystemExit, match=r"the same command goes on where it stopped \(see .*workbook.log\)"):
        graph.main([])


def test_outputs_that_cannot_be_written_say_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RQLIB_OUTPUTS", str(tmp_path / "file"))
    with pytest.raises(SystemExit, match="expected a folder that can be written, got .*; set RQLIB_OUTPUTS"):
        graph.main([])


def test_a_run_in_a_line():
    run = start(seed=0)
    run.finish("INT_6 is enough", "SmallCNN on digits")
    assert batch.in_a_line(run.folder) == f"05_robust {run.folder.name}: INT_6 is enough (0:00)"
