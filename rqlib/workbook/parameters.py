"""Parameters of a notebook: their names, types and ranges, and one readable error for all faults.

A notebook declares them in its `parameters` cell, one a line (``epochs: int = 30  # passes over the
data``). The types are handled as text (``"list[int]"``), the same from a running kernel and from a file.
"""

import ast
import difflib
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

KINDS = re.compile(r"(int|float|str|bool|list\[(int|float|str)\])( \| None)?")
"""The types a parameter may have."""

LIMITS: list[tuple[str, Callable[[float], bool], str]] = [
    ("at least 1", lambda v: v >= 1, "*batch_size *steps *restarts *samples *images *members *iterations *bits"),
    ("at least 0", lambda v: v >= 0, "*epochs seed seeds sigma sigmas *_sigma *_std weight_decay workers"),
    ("above 0", lambda v: v > 0, "*learning_rate width widths temperature"),
    ("from 0 to 255", lambda v: 0 <= v <= 255, "epsilon*_255 step_size_255"),
    ("above 0 and at most 1", lambda v: 0 < v <= 1, "kept *_kept"),
    ("from 0 to 1", lambda v: 0 <= v <= 1, "*fraction *probability"),
    ("between 0 and 1", lambda v: 0 < v < 1, "alpha confidence"),
]
"""(meaning, test, patterns of names): a name means the same in every notebook, so does its range."""


class ParameterError(ValueError):
    """All that is wrong with the parameters of a run, in one line."""


def declared(namespace: Mapping) -> dict[str, str]:
    """Name -> type, as text, of the names annotated in a running notebook's namespace."""
    annotations = namespace.get("__annotations__", {})
    return {name: _text(annotation) for name, annotation in annotations.items()}


def _text(annotation) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation)


def declared_in(source: str) -> dict[str, str]:
    """Name -> type, as text, of the names annotated in the source of a `parameters` cell."""
    lines = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: ast.unparse(node.annotation).strip("'") for node in lines}


def injected(history: Sequence[str]) -> list[str]:
    """Names assigned by the cell that papermill injected last, out of IPython's history ``In``."""
    cells = [source for source in history if source.lstrip().startswith("# Parameters\n")]
    nodes = ast.parse(cells[-1]).body if cells else []
    return [node.targets[0].id for node in nodes if isinstance(node, ast.Assign)]


def from_namespace(namespace: Mapping) -> dict:
    """The parameters of a running notebook, checked and converted: name -> value.

    Raises:
        ParameterError: as `check`; also for an injected name that the notebook does not declare.
    """
    types = declared(namespace)
    names = dict.fromkeys([*types, *injected(namespace.get("In", []))])
    values = {name: namespace[name] for name in names if name in namespace}
    return check(values, types, required=types)


def check(values: Mapping, types: Mapping[str, str], required: Iterable[str] = ()) -> dict:
    """The values converted to their types: name -> value.

    An int is taken for a float, and so is a number written as text: YAML reads ``1e-3`` as text.

    Args:
        values: name -> value.
        types: name -> type as text, one of int, float, str, bool, a list of these, or ``X | None``.
        required: names that must have a value.

    Raises:
        ParameterError: unknown name, missing, wrong type, or out of range: all faults in one line.
    """
    faults = [f"missing parameter {name!r}" for name in required if name not in values]
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = _checked(name, value, types)
        except ParameterError as fault:
            faults.append(str(fault))
    if faults:
        raise ParameterError("; ".join(faults))
    return checked


def _checked(name: str, value, types: Mapping[str, str]):
    if name not in types:
        near = difflib.get_close_matches(name, types, 1)
        raise ParameterError(
            f"unknown parameter {name!r} "
            + (f"(did you mean {near[0]!r}?)" if near else f"(known: {', '.join(types)})")
        )
    kind = types[name]
    if not KINDS.fullmatch(kind):
        raise ParameterError(
            f"annotation of {name!r}: expected int, float, str, bool, list[...] or X | None, got {kind}"
        )
    try:
        value = _converted(value, kind)
    except (TypeError, ValueError, OverflowError):
        got = f"got {type(value).__name__}{_remedy(name, value, kind)}"
        raise ParameterError(f"{name}={reprlib.repr(value)}: expected {kind}, {got}") from None
    _check_range(name, value)
    return value


def _converted(value, kind: str):
    if kind.endswith(" | None"):
        return None if value is None else _converted(value, kind.removesuffix(" | None"))
    if kind.startswith("list["):
        if not isinstance(value, list | tuple):
            raise TypeError
        return [_converted(item, kind[5:-1]) for item in value]
    if kind == "float" and type(value) in (int, str):
        return float(value)
    if type(value).__name__ != kind:
        raise TypeError
    return value


def _remedy(name: str, value, kind: str) -> str:
    if kind.startswith("list["):
        return f"; write {name}: [..., ...] (papermill: -y '{name}: [..., ...]')"
    if kind.startswith("str") and value is not None:
        return f"; write it in quotes (papermill: -r {name} ...)"
    return ""


def _check_range(name: str, value) -> None:
    numbers = [item for item in (value if isinstance(value, list) else [value]) if type(item) in (int, float)]
    if not all(map(math.isfinite, numbers)):
        raise ParameterError(f"{name}={reprlib.repr(value)}: expected a finite number")
    for meaning, allowed, patterns in LIMITS:
        applies = any(fnmatchcase(name, pattern) for pattern in patterns.split())
        if applies and not all(map(allowed, numbers)):
            raise ParameterError(f"{name}={reprlib.repr(value)}: expected {meaning}")
