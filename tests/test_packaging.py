"""What is installed is listed once, exactly, and every file of the library says what it is for."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("rqlib/**/*.py"))
LONGEST = 40  # lines of code of a function, without its docstring


def lines_of_code(function: ast.FunctionDef) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are_and_functions_are_short(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "this file does not say what it is for"
    public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    silent = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"without a docstring: {silent}"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = [node.name for node in functions if lines_of_code(node) > LONGEST]
    assert not long, f"longer than {LONGEST} lines: {long}"


def test_conda_and_pip_read_the_same_list():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    names = [re.split(r"[=<>]", entry)[0] for entry in conda if isinstance(entry, str)]
    assert names == ["python", "pip"], "every package stands in pyproject.toml alone"
    assert conda[-1] == {"pip": ["-c constraints.txt", "-e .[workflow,figures,onnx,test]"]}
    assert "-c constraints.txt -e '.[workflow,figures,onnx,test]'" in (ROOT / "Makefile").read_text()


def test_constraints_are_exact_and_without_addresses():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.!]+", line) for line in lines)
    assert {"torch==2.13.0", "torchvision==0.28.0"} <= set(lines)
