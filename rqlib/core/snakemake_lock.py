"""Snakemake's lock of a working folder, which a killed Snakemake leaves behind.

python -m rqlib.core.snakemake_lock      removes the lock in this folder if its Snakemake no longer lives
"""

import contextlib
import json
import shutil
import socket
from pathlib import Path

import psutil

OWNER = Path(".snakemake/owner.json")


def own() -> None:
    """Note that this process runs the graph in the working folder."""
    me = psutil.Process()
    owner = {"host": socket.gethostname(), "process": me.pid, "began": me.create_time()}
    part = OWNER.with_suffix(".part")
    part.write_text(json.dumps(owner))
    part.replace(OWNER)


def release_if_stale() -> None:
    """Remove the lock if the process that took it is known to have ended, and say so.

    On another machine, for example another login node of a cluster, nobody can tell; then the lock stays.
    """
    locks = Path(".snakemake/locks")
    if not locks.is_dir() or not any(locks.iterdir()) or not OWNER.is_file():
        return
    if max(lock.stat().st_mtime for lock in locks.iterdir()) > OWNER.stat().st_mtime:
        return  # of a Snakemake that has not noted yet that it runs
    owner = json.loads(OWNER.read_text())
    if owner["host"] == socket.gethostname() and not _lives(owner):
        shutil.rmtree(locks)
        print(f"unlocked: the Snakemake that had locked this folder (process {owner['process']}) has ended")


def _lives(owner: dict) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return abs(psutil.Process(owner["process"]).create_time() - owner["began"]) < 2  # seconds; a clock may be set
    return False


if __name__ == "__main__":
    release_if_stale()
