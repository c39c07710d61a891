"""Everything runs on one device; in a process of its own, because torch keeps a kind of device once it knows it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_all_that_runs_on_a_gpu_stays_on_one_device():
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "tests/placement_checks.py",
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
