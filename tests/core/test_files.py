import errno
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rqlib.core import files


def test_a_failing_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "table.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"), files.atomic(target) as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_tensors_round_trip(tmp_path):
    content = {"weight": torch.arange(4.0), "name": "x", "epoch": 3, "rows": [{"loss": 0.5}]}
    files.save_tensors(tmp_path / "a.pt", content)
    loaded = files.load_tensors(tmp_path / "a.pt")
    assert torch.equal(loaded.pop("weight"), content.pop("weight"))
    assert loaded == content


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("case", ["truncated", "foreign", "code"])
def test_what_is_no_checkpoint_is_refused_and_never_executed(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif case == "foreign":
        path.write_bytes(b"PNG not a checkpoint")
    else:
        path.write_bytes(pickle.dumps({"weight": Malicious()}))
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        files.load_tensors(path)
    assert not (tmp_path / "executed").exists()


def test_missing_and_wrong_content(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint at"):
        files.load_tensors(tmp_path / "none.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a dict of tensors, got list"):
        files.load_tensors(tmp_path / "list.pt")


def test_lock_refuses_a_second_owner_and_is_freed_with_its_process(tmp_path):
    hold = f"from rqlib.core.files import lock; held = lock({str(tmp_path)!r}); print('held', flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match="output folder in use"):
            files.lock(tmp_path)
    finally:
        owner.kill()
        owner.communicate()
    mine = files.lock(tmp_path)
    mine.release()
    files.lock(tmp_path).release()


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
