"""What a result came from: the hash changes with the code, and with nothing else."""

import json
import subprocess
from pathlib import Path

import numpy

import rqlib
from rqlib.core import provenance


def write_notebook(path, *cells, output=None):
    content = [
        {"cell_type": kind, "source": source, "metadata": {"id": output}, "outputs": [output]} for kind, source in cells
    ]
    path.write_text(json.dumps({"cells": content, "metadata": {"saved": output}}))
    return path


def test_fingerprint_follows_code_cells_only(tmp_path):
    code = ("code", ["x = 1\n", "y = 2"])
    one = provenance.fingerprint(write_notebook(tmp_path / "one.ipynb", code, ("markdown", "words")))
    executed = write_notebook(tmp_path / "two.ipynb", ("markdown", "other words"), ("code", "x = 1\ny = 2"), output="7")
    assert provenance.fingerprint(executed) == one
    assert provenance.fingerprint(write_notebook(tmp_path / "three.ipynb", ("code", "x = 1\ny = 3"))) != one
    assert provenance.fingerprint() != one
    described = provenance.describe(tmp_path, executed)
    assert described["code"] == one
    assert described["versions"]["numpy"] == numpy.__version__
    assert provenance._version("no-such-library") is None
    assert provenance.describe(tmp_path, tmp_path / "none.ipynb")["code"] == provenance.fingerprint()


def test_fingerprint_follows_every_chapter_of_the_library(tmp_path, monkeypatch):
    here, package = Path(provenance.__file__), Path(rqlib.__file__).parent
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / here.relative_to(package)))
    source, moved = tmp_path / "models" / "small.py", tmp_path / "models" / "large.py"
    source.parent.mkdir()
    source.write_text("x = 1")
    before = provenance.fingerprint()
    source.write_text("x = 2")
    changed = provenance.fingerprint()
    source.rename(moved)
    assert len({before, changed, provenance.fingerprint()}) == 3
    (tmp_path / "notes.txt").write_text("no code")
    moved.unlink()
    source.write_text("x = 1")
    assert provenance.fingerprint() == before


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_commit_and_uncommitted_changes(tmp_path, monkeypatch):
    assert provenance.commit(tmp_path) == {"commit": None, "uncommitted_changes": None}
    git(tmp_path, "init")
    assert provenance.commit(tmp_path) == {"commit": None, "uncommitted_changes": False}
    (tmp_path / "a.py").write_text("x = 1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = provenance.commit(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["uncommitted_changes"] is False
    (tmp_path / "a.py").write_text("x = 2")
    assert provenance.commit(tmp_path) == {"commit": clean["commit"], "uncommitted_changes": True}
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no git
    assert provenance.commit(tmp_path) == {"commit": None, "uncommitted_changes": None}
