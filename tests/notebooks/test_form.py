"""What a notebook is made of: a checked parameters cell, cells without stored outputs, one that is compared."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PRESETS = sorted(ROOT.glob("params/*/[0-9]*.yaml"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def parameters(path: Path) -> list[str]:
    (cell,) = (cell for cell in cells(path) if "parameters" in tags(cell))
    return [node.target.id for node in ast.parse(source(cell)).body]


@every_notebook
def test_notebooks_hold_no_outputs_and_no_widget_state(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"]
    for cell in cells(path):
        kept = "keep_output" in tags(cell)
        assert cell["execution_count"] is None or kept
        assert not cell["outputs"] or kept


@every_notebook
def test_parameters_cell_is_annotated_and_followed_by_run(path):
    code = cells(path)
    at = [index for index, cell in enumerate(code) if "parameters" in tags(cell)]
    assert at == [0]
    body, lines = ast.parse(source(code[0])).body, source(code[0]).splitlines()
    for node in body:
        assert isinstance(node, ast.AnnAssign)
        assert node.value
        assert "  # " in "".join(lines[node.lineno - 1 : node.end_lineno]), f"{node.target.id} has no comment"
    assert f'Run("{path.stem}", globals()' in source(code[1])


@every_notebook
def test_a_cell_of_every_notebook_is_really_compared(path):
    compared = [cell for cell in cells(path) if "nbval-check-output" in tags(cell)]
    assert compared
    assert all("keep_output" in tags(cell) and cell["outputs"] for cell in compared)


@every_notebook
def test_lines_of_code_are_at_most_100_characters_long(path):
    lines = [line for cell in cells(path) for line in source(cell).splitlines()]
    assert not [line for line in lines if len(line) > 100]


@every_notebook
def test_titles_of_figures_say_what_a_network_was_trained_for(path):
    lines = [line for cell in cells(path) for line in source(cell).splitlines()]
    titles = [line for line in lines if re.search(r"\btitle\b", line) and re.search(r"\{(about\.)?model\}", line)]
    assert not titles, "expected {about.title} or workbook.title_of(...)"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(ROOT)))
def test_parameter_files_use_the_notebooks_names(path):
    known = parameters(ROOT / "notebooks" / f"{path.stem}.ipynb")
    assert set(yaml.safe_load(path.read_text()) or {}) <= set(known)


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(arguments):
    """In modules, tests and notebooks."""
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, *arguments, "--no-cache", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
