"""The house: chapters import only those above them, files without circles, and notebooks take at most six names."""

import ast
import graphlib
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAPTERS = (
    *("core", "data", "models", "attacks", "defenses", "certification", "measures", "training", "quantization"),
    *("prediction", "robustness", "generator", "pruning", "workbook"),
)


def imported(source: str) -> list[str]:
    """Dotted names that a source takes from rqlib, without the ``rqlib.``: ``data``, ``core.files.atomic``."""
    nodes = list(ast.walk(ast.parse(source)))
    whole = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parts = [f"{node.module}.{part.name}" for node in nodes if isinstance(node, ast.ImportFrom) for part in node.names]
    return [name.removeprefix("rqlib.") for name in whole + parts if name.startswith("rqlib.")]


def faults(root: Path) -> list[str]:
    """Upward imports and circles in the library; in notebooks, long lines and too many names of the library."""
    paths = {
        ".".join(path.relative_to(root / "rqlib").with_suffix("").parts): path for path in root.rglob("rqlib/*/**/*.py")
    }
    files = {name.removesuffix(".__init__"): imported(path.read_text()) for name, path in paths.items()}
    found, graph = [], {}
    for name, names in files.items():
        level = CHAPTERS.index(name.split(".")[0])
        found += [f"{name} imports {other}" for other in names if CHAPTERS.index(other.split(".")[0]) > level]
        graph[name] = {other if other in files else other.rpartition(".")[0] for other in names} - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' -> '.join(error.args[1])}")
    for path in root.glob("notebooks/*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        code = "\n".join("".join(cell["source"]) for cell in cells)
        found += [f"{path.stem}: {len(line)} characters" for line in code.splitlines() if len(line) > 100]
        found += [f"{path.stem} takes {len(imported(code))} names of rqlib"] if len(imported(code)) > 6 else []
    return found


def test_the_house_stands():
    assert {path.parent.name for path in ROOT.glob("rqlib/*/__init__.py")} == set(CHAPTERS)
    assert [path.name for path in ROOT.glob("rqlib/*.py")] == ["__init__.py"]
    assert not faults(ROOT)


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("rqlib/core/files.py", "from rqlib import training", "core.files imports training"),
        ("rqlib/measures/cost.py", "from rqlib.workbook import results", "measures.cost imports workbook.results"),
        ("rqlib/quantization/formats.py", "from rqlib.quantization import sweeping", "circle: "),
        ("notebooks/01_train.ipynb", f"# {'x' * 99}", "01_train: 101 characters"),
        (
            "notebooks/01_train.ipynb",
            "from rqlib.core import files, layers, plots, runtime, widgets",
            "01_train takes ",
        ),
    ],
)
def test_a_planted_fault_is_found(tmp_path, file, line, fault):
    for folder in ("rqlib", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    path = tmp_path / file
    if path.suffix == ".py":
        path.write_text(f"{path.read_text()}\n{line}\n")
    else:
        notebook = json.loads(path.read_text())
        notebook["cells"].append({"cell_type": "code", "source": [line]})
        path.write_text(json.dumps(notebook))
    assert any(found.startswith(fault) for found in faults(tmp_path))
