"""Levels of the library, thin notebooks, parameter files that match, nothing listed twice."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

import rqlib

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
LEVELS = {name: int(level) for level, name in re.findall(r"\| (\d) \| `(\w+)`", rqlib.__doc__)}
FILES = sorted(path for path in ROOT.glob("rqlib/**/*.py") if path != ROOT / "rqlib/__init__.py")
identity = {"ids": lambda path: path.relative_to(ROOT).as_posix()}


def module_of(path: Path) -> str:
    """The part of rqlib a file belongs to: its name, or the package's."""
    return path.relative_to(ROOT / "rqlib").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of rqlib that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rqlib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rqlib."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rqlib.")}
    return found


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def parameters(path: Path) -> list[str]:
    (cell,) = (cell for cell in cells(path) if "parameters" in tags(cell))
    return [node.target.id for node in ast.parse(source(cell)).body]


def test_every_file_has_a_level_and_every_level_a_file():
    assert {module_of(path) for path in FILES} == set(LEVELS)


@pytest.mark.parametrize("path", FILES, **identity)
def test_imports_go_strictly_downward(path):
    own = module_of(path)
    for name in imported(path) - {own}:
        below = LEVELS[name] < LEVELS[own] or (LEVELS[name] == LEVELS[own] == 0)
        assert below, f"{own} (level {LEVELS[own]}) imports {name} (level {LEVELS[name]})"


def test_no_cycles_on_a_level():
    needs = {name: set() for name in LEVELS}
    for path in FILES:
        needs[module_of(path)] |= imported(path) - {module_of(path)}
    while needs:
        free = {name for name, below in needs.items() if not below & needs.keys()}
        assert free, f"these import each other: {needs}"
        needs = {name: below for name, below in needs.items() if name not in free}


@pytest.mark.parametrize("path", FILES, **identity)
def test_files_are_thin_and_say_what_they_are(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 300, f"{path.name} has grown: one idea a file"
    assert ast.get_docstring(tree), f"{path.name} does not say what it is for"
    public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    silent = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"without a docstring: {silent}"


def test_every_file_of_the_library_has_a_test_file():
    tested = {path.stem.removeprefix("test_") for path in ROOT.glob("tests/test_*.py")}
    assert set(LEVELS) <= tested


@pytest.mark.parametrize("path", NOTEBOOKS, **identity)
def test_notebooks_are_thin_and_stripped(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"]
    for cell in cells(path):
        lines = source(cell).splitlines()
        assert len(lines) <= (30 if "parameters" in tags(cell) else 15), f"{len(lines)} lines from {lines[0]!r}"
        assert not re.search(r"^\s*(def|class) ", source(cell), re.MULTILINE)
        kept = "keep_output" in tags(cell)
        assert cell["execution_count"] is None or kept
        assert not cell["outputs"] or kept


@pytest.mark.parametrize("path", NOTEBOOKS, **identity)
def test_parameters_cell_is_annotated_and_followed_by_run(path):
    code = cells(path)
    at = [index for index, cell in enumerate(code) if "parameters" in tags(cell)]
    assert at == [0]
    body = ast.parse(source(code[0])).body
    assert all(isinstance(node, ast.AnnAssign) and node.value for node in body)
    assert all("  # " in line for line in source(code[0]).splitlines()), "every parameter has a comment"
    assert f'results.Run("{path.stem}", globals()' in source(code[1])


@pytest.mark.parametrize("path", NOTEBOOKS, **identity)
def test_a_cell_of_every_notebook_is_really_compared(path):
    compared = [cell for cell in cells(path) if "nbval-check-output" in tags(cell)]
    assert compared
    assert all("keep_output" in tags(cell) and cell["outputs"] for cell in compared)


@pytest.mark.parametrize("path", sorted(ROOT.glob("params/*/[0-9]*.yaml")), **identity)
def test_parameter_files_use_the_notebooks_names(path):
    known = parameters(ROOT / "notebooks" / f"{path.stem}.ipynb")
    assert set(yaml.safe_load(path.read_text()) or {}) <= set(known)


def test_conda_and_pip_read_the_same_list():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    names = [re.split(r"[=<>]", entry)[0] for entry in conda if isinstance(entry, str)]
    assert names == ["python", "pip"], "every package stands in pyproject.toml alone"
    assert conda[-1] == {"pip": ["-c constraints.txt", "-e .[workflow,figures,test]"]}
    assert "-c constraints.txt -e '.[workflow,figures,test]'" in (ROOT / "Makefile").read_text()


def test_constraints_are_exact_and_without_addresses():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.!]+", line) for line in lines)
    assert {"torch==2.13.0", "torchvision==0.28.0"} <= set(lines)
