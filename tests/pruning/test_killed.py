"""`kill -9` after every state that is kept, in each stage of the chain, in a cascade and in smoothing: same results."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from rqlib.core import codebooks, files
from rqlib.pruning import constraints
from tests.pruning import killed

ROOT = Path(__file__).parents[2]


def test_killed_after_every_state_it_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(codebooks, "EXACT", codebooks.EXACT)  # what `killed.compute` changes is undone
    monkeypatch.setattr(constraints, "EVERY", constraints.EVERY)
    line = [sys.executable, "-W", "ignore", "-m", "tests.pruning.killed", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (times,) = re.findall(r"^killed (\d+) times$", done.stdout, re.MULTILINE)
    assert int(times) >= 1 + 1 + 2 + 1 + 2 + 2
    found = files.load_tensors(tmp_path / "results.pt")
    expected = killed.compute(None)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name
