"""Our notebooks are refused before they start when a name is misspelled, and leave no result when they fail."""

import json
import re
import sys

import pytest

from rqlib.workbook import run
from tests.notebooks.small import NOTEBOOKS, ROOT, command


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_batch_run_is_refused_before_it_starts(tmp_path, monkeypatch, notebook):
    monkeypatch.setattr(run, "_execute", lambda *_: pytest.fail("a kernel was started"))
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    source, out = str(ROOT / f"notebooks/{notebook}.ipynb"), str(tmp_path / "out.ipynb")
    with pytest.raises(SystemExit, match=r"unknown parameter 'run_foldr' \(did you mean 'run_folder'\?\)"):
        run.main([source, out, "-p", "run_foldr=x", "-p", "device=5"])
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_be_says_why_and_leaves_no_result(tmp_path):
    out = tmp_path / "out.ipynb"
    line = [sys.executable, "-m", "rqlib.workbook.run", "notebooks/01_train.ipynb", out, "-p", "weights=README.md"]
    done = command(line, outputs=tmp_path / "outputs")
    assert done.returncode == 1
    assert re.search(r"failed in cell \d+: ValueError: .*README.md", done.stderr), done.stderr[-2000:]
    assert not out.exists()
    assert not list(tmp_path.rglob("rows.parquet"))
    assert json.loads((tmp_path / "out.failed.ipynb").read_text())["cells"]
