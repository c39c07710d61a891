"""What a result came from: the hash changes with the code, and with nothing else."""

import json
import subprocess

import pytest

from rqlib.workbook import provenance


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


def test_fingerprint_follows_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    (tmp_path / "models").mkdir()
    source = tmp_path / "models" / "small.py"
    source.write_text("x = 1")
    before = provenance.fingerprint()
    source.write_text("x = 2")
    changed = provenance.fingerprint()
    source.rename(tmp_path / "models" / "large.py")
    assert len({before, changed, provenance.fingerprint()}) == 3
    (tmp_path / "notes.txt").write_text("no code")
    source.write_text("x = 1")
    (tmp_path / "models" / "large.py").unlink()
    assert provenance.fingerprint() == before


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_commit_and_uncommitted_changes(tmp_path):
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


def test_no_git_on_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit(tmp_path) == {"commit": None, "uncommitted_changes": None}


def test_versions_are_those_imported(monkeypatch):
    import numpy

    assert provenance.versions()["numpy"] == numpy.__version__
    monkeypatch.setattr(provenance, "LIBRARIES", ("no-such-library",))
    assert provenance.versions() == {"no-such-library": None}


@pytest.mark.parametrize("present", [True, False])
def test_describe(tmp_path, present):
    path = tmp_path / "a.ipynb"
    if present:
        write_notebook(path, ("code", "x = 1"))
    found = provenance.describe(tmp_path, path)
    assert found["code"] == provenance.fingerprint(path if present else None)
    assert {"commit", "uncommitted_changes", "code", "versions"} == set(found)
