"""What a result came from: the commit, the code, the versions of the libraries. Needs no torch."""

import hashlib
import json
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("rqlib", "torch", "torchvision", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "plotly")


def describe(root: Path, notebook: Path) -> dict:
    """All of this file for a run's record; a notebook that lies elsewhere is left out of ``code``."""
    code = fingerprint(notebook if notebook.is_file() else None)
    return {**commit(root), "code": code, "versions": versions()}


def fingerprint(notebook: str | Path | None = None) -> str:
    """Hash (16 hex digits) of ``rqlib`` and of a notebook's code cells; text, outputs and ids don't count.

    A run whose fingerprint changed must be run again; saving or executing a notebook does not change it.
    """
    package = Path(__file__).parent
    content = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    if notebook is not None:
        content.update("\0".join(code_cells(notebook)).encode())
    return content.hexdigest()[:16]


def code_cells(notebook: str | Path) -> list[str]:
    """Sources of a notebook's code cells."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def commit(root: Path) -> dict:
    """The commit of a folder under git, and whether files differ from it; None where git cannot tell."""
    head, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return {"commit": head, "uncommitted_changes": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str | None]:
    """Versions of the libraries that numbers depend on; None for one that is not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
