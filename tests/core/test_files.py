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


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def truncate(path: Path) -> None:
    torch.save({"weight": torch.arange(1000.0)}, path)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (truncate, ValueError, "not a whole checkpoint"),
        (lambda path: path.write_bytes(b"PNG not a checkpoint"), ValueError, "not a whole checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps({"weight": Malicious()})), ValueError, "not a whole checkpoint"),
        (lambda path: torch.save([torch.zeros(1)], path), ValueError, "expected a dict of tensors, got list"),
        (lambda path: None, FileNotFoundError, "expected a checkpoint at .*bad.pt"),
    ],
    ids=["truncated", "foreign", "code", "list", "missing"],
)
def test_what_is_no_checkpoint_is_refused_and_never_executed(tmp_path, monkeypatch, write, error, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.pt")
    with pytest.raises(error, match=words):
        files.load_tensors(tmp_path / "bad.pt")
    assert not (tmp_path / "executed").exists()


def test_what_a_killed_process_leaves_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    """Two processes write; one is killed amid it."""
    write = (
        "import sys\nfrom rqlib.core import files\n"
        "with files.atomic(sys.argv[1]) as part: part.write_text('half'); print('begun', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    names = ["deep/killed.pt", "living.ipynb"]
    killed, living = (subprocess.Popen([sys.executable, "-c", write, tmp_path / name], **pipes) for name in names)
    assert killed.stdout.readline() == living.stdout.readline() == "begun\n"
    killed.kill()
    killed.communicate()
    own = [tmp_path / name for name in (".hidden", ".config.json", ".lock")]
    for path in own:
        path.write_text("the user's own")
    files.sweep(tmp_path, "living.ipynb")
    assert len([*tmp_path.rglob(".killed*"), *tmp_path.rglob(".living*")]) == 2
    files.sweep(tmp_path)
    assert not list(tmp_path.rglob(".killed*"))
    living.communicate("go on\n")
    assert (tmp_path / "living.ipynb").read_text() == "half"
    assert all(path.exists() for path in own)


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


def test_project_root_is_found_from_within_and_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("RQLIB_ROOT", raising=False)
    project = Path(files.__file__).parents[2]
    for folder in (project, project / "tests", tmp_path):
        monkeypatch.chdir(folder)
        assert files.project_root() == project
    (tmp_path / "pyproject.toml").write_text('name = "rqlib"')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert files.project_root() == tmp_path
    monkeypatch.setenv("RQLIB_ROOT", str(project))
    assert files.project_root() == project
