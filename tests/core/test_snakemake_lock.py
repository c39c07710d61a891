"""The lock of a Snakemake that has been killed goes; that of a living one, or of another machine, stays."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from rqlib.core import snakemake_lock


@pytest.fixture
def locks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    locks = tmp_path / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").write_text("a file\n")
    return locks


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({}, True),
        ({"began": 1.0}, False),  # another process has got the number
        ({"process": 2**22 + 1}, False),
        ({"process": 2**22 + 1, "host": "another machine"}, True),
    ],
    ids=["lives", "another process", "ended", "another machine"],
)
def test_only_a_lock_whose_process_has_ended_goes(locks, capsys, change, stays):
    snakemake_lock.own()
    owner = json.loads(snakemake_lock.OWNER.read_text())
    assert owner["process"] == psutil.Process().pid
    snakemake_lock.OWNER.write_text(json.dumps(owner | change))
    snakemake_lock.release_if_stale()
    assert locks.exists() == stays
    assert capsys.readouterr().out.startswith("unlocked: " if not stays else "")


def test_a_lock_newer_than_what_is_known_of_its_owner_stays(locks):
    snakemake_lock.own()
    owner = json.loads(snakemake_lock.OWNER.read_text())
    snakemake_lock.OWNER.write_text(json.dumps(owner | {"began": 1.0}))
    os.utime(snakemake_lock.OWNER, (0, 0))
    snakemake_lock.release_if_stale()
    assert locks.exists()


def test_without_a_lock_or_a_known_owner_nothing_happens(locks):
    snakemake_lock.release_if_stale()
    assert locks.exists()
    (locks / "0.input.lock").unlink()
    snakemake_lock.own()
    snakemake_lock.release_if_stale()
    assert locks.exists()


def test_what_the_snakefile_imports_needs_no_torch():
    """It is read in the process of every job."""
    names = "plain_yaml, presets, provenance, snakemake_lock"
    look = f"import sys; from rqlib.core import {names}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True)
