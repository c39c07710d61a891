"""The house: chapters import only those above them, files import each other without circles."""

import ast
import graphlib
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAPTERS = (
    *("core", "data", "models", "attacks", "defenses", "certification", "measures", "training", "quantization"),
    *("prediction", "robustness", "generator", "pruning", "workbook"),
)


def imported(source: str) -> set[str]:
    """Dotted names that a source takes from rqlib, without the ``rqlib.``: ``data``, ``core.files.atomic``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("rqlib.") for name in found if name.startswith("rqlib.")}


def faults_of_imports(root: Path) -> list[str]:
    """Imports that go upward, and circles, among all files of the library."""
    paths = {
        ".".join(path.relative_to(root / "rqlib").with_suffix("").parts): path for path in root.glob("rqlib/*/**/*.py")
    }
    files = {name.removesuffix(".__init__"): imported(path.read_text()) for name, path in paths.items()}
    found, graph = [], {}
    for name, names in files.items():
        chapter = CHAPTERS.index(name.split(".")[0])
        found += [f"{name} imports {other}" for other in names if CHAPTERS.index(other.split(".")[0]) > chapter]
        graph[name] = {other if other in files else other.rpartition(".")[0] for other in names} - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' -> '.join(error.args[1])}")
    return found


def test_the_chapters_are_those_of_the_list():
    assert {path.parent.name for path in ROOT.glob("rqlib/*/__init__.py")} == set(CHAPTERS)
    assert [path.name for path in ROOT.glob("rqlib/*.py")] == ["__init__.py"]


def test_chapters_import_downward_and_files_without_circles():
    assert not faults_of_imports(ROOT)


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("core/files.py", "from rqlib import training", "core.files imports training"),
        ("measures/cost.py", "from rqlib.workbook import results", "measures.cost imports workbook.results"),
        ("quantization/formats.py", "from rqlib.quantization import sweeping", "circle: "),
        ("pruning/masks.py", "from rqlib import pruning", "circle: "),
    ],
)
def test_a_planted_fault_is_found(tmp_path, file, line, fault):
    shutil.copytree(ROOT / "rqlib", tmp_path / "rqlib")
    path = tmp_path / "rqlib" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert any(found.startswith(fault) for found in faults_of_imports(tmp_path))
