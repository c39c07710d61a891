"""What a result came from: the commit, the code, the versions of the libraries. Needs no torch."""

import hashlib
import json
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("rqlib", "torch", "torchvision", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "plotly")


def describe(root: Path, notebook: Path) -> dict:
    """Commit, code and versions for a run's record; ``code`` leaves out a notebook that does not exist."""
    code = fingerprint(notebook if notebook.is_file() else None)
    return {**commit(root), "code": code, "versions": {name: _version(name) for name in LIBRARIES}}


def fingerprint(notebook: str | Path | None = None) -> str:
    """Hash (16 hex digits) of all of ``rqlib`` and of a notebook's code cells, without its text, outputs and ids.

    A run whose fingerprint changed must be run again; saving or executing a notebook does not change it.
    """
    package = Path(__file__).parents[1]
    content = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    if notebook is not None:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        content.update("\0".join(sources).encode())
    return content.hexdigest()[:16]


def commit(root: Path) -> dict:
    """The commit of a folder under git, and whether files differ from it. Both are None if git cannot tell."""
    head, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return {"commit": head, "uncommitted_changes": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    """The version of a library that the numbers depend on; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
