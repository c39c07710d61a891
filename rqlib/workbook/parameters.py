"""Parameters of a notebook: their names, types and ranges, and one readable error for all faults.

A notebook declares them in its `parameters` cell, one per line (``epochs: int = 30  # passes over the
data``). The types are handled as text (``"list[int]"``), the same from a running kernel and from a file;
pydantic checks the values.
"""

import ast
import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails, PydanticCustomError

from rqlib.core import plain_yaml
from rqlib.workbook import choices

KINDS = re.compile(r"(?P<list>list\[)?(?P<item>int|float|str|bool)(?(list)\])(?P<none> \| None)?")
"""The types that a parameter may have."""

LIMITS: list[tuple[dict[str, float], str]] = [
    ({"ge": 0, "le": 10**9}, "deployed_images"),
    ({"ge": 10, "le": 10**9}, "pseudo_images"),
    ({"ge": 1, "le": 10**9}, "*batch_size *steps *restarts *samples *images *members *iterations *trainings *draws"),
    ({"ge": 1, "le": 10**6}, "prune_epochs pretrain_epochs ablation_epochs"),
    ({"ge": 0, "le": 10**6}, "*epochs *rounds workers"),
    ({"ge": 0, "le": 2**32 - 1}, "*seed *seeds"),
    ({"ge": 0}, "*gamma *_strength sigma sigmas *_sigma *_std weight_decay"),
    ({"gt": 0}, "*_radius temperature"),
    ({"gt": 0, "le": 1}, "*learning_rate"),
    ({"gt": 0, "le": 16}, "width widths"),
    ({"ge": 2, "le": 16}, "*bits"),
    ({"ge": 1, "le": 4096}, "image_size channels"),
    ({"ge": 2, "le": 10**6}, "num_classes"),
    ({"ge": 0, "le": 255}, "epsilon*_255 step_size_255 certified_255"),
    ({"gt": 0, "le": 1}, "kept *_kept *_ratios"),
    ({"gt": 1}, "*_compressions"),
    ({"ge": 0, "le": 1}, "*fraction *probability tolerated_loss"),
    ({"gt": 0, "lt": 1}, "alpha confidence level"),
]
"""(bounds, patterns of names): a name means the same in every notebook, so it has the same range. The first counts."""

NOT_EMPTY = ("kept", "epsilons_255", "sensitivity_formats", "certified_255", "certified_bounds", "smoothing_draws")
"""Lists that must name something; every other empty list means none of it, or what the notebook says."""

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ParameterError(ValueError):
    """All that is wrong with the parameters of a run, in one line."""


def declared(namespace: Mapping) -> dict[str, str]:
    """Name -> type, as text, of the names annotated in a running notebook's namespace."""
    annotations = namespace.get("__annotations__", {})
    return {name: kind.__name__ if type(kind) is type else str(kind) for name, kind in annotations.items()}


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
    return check({name: namespace[name] for name in names if name in namespace}, types, complete=True)


def check(values: Mapping, types: Mapping[str, str], *, complete: bool = False) -> dict:
    """The values converted to their types: name -> value, in the order of the types.

    A whole number is accepted for a float, and so is a number written as text: YAML reads ``1e-3`` as text.

    Args:
        values: name -> value.
        types: name -> type as text: int, float, str, bool, a list of one of these, or one of these ``| None``.
        complete: whether every name must have a value.

    Raises:
        ParameterError: unknown name, missing, wrong type, out of range, a name that the library does not know, or a
            file that is not there (`choices`): all faults in one line.
    """
    default: Any = ... if complete else None
    fields: dict[str, Any] = {name: (_annotation(name, kind), default) for name, kind in types.items()}
    model = pydantic.create_model("Parameters", __config__=STRICT, **fields)
    try:
        return model.model_validate(dict(values)).model_dump(exclude_unset=True)
    except pydantic.ValidationError as error:
        faults = dict.fromkeys(_fault(each, values, types) for each in error.errors())
        raise ParameterError("; ".join(faults)) from None


def options(settings: Sequence[str]) -> dict:
    """Options of a constructor, each given as ``NAME=VALUE`` with the value in YAML: name -> value.

    Raises:
        ParameterError: a setting has no ``=``, its name is no name, it is given twice, or its value is not YAML.
    """
    found: dict = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (equals and name.strip().isidentifier()):
            raise ParameterError(f"options: expected NAME=VALUE such as width=0.25, got {setting!r}")
        if name.strip() in found:
            raise ParameterError(f"options: {name.strip()!r} is given twice")
        found[name.strip()] = from_yaml(text, f"options: {setting}")
    return found


def from_yaml(text: str, where: str):
    """The value of a text in YAML; ``where`` it stands begins the message of an error.

    Raises:
        ParameterError: as `plain_yaml.load`.
    """
    try:
        return plain_yaml.load(text)
    except ValueError as error:
        raise ParameterError(f"{where}: {error}") from error


def _annotation(name: str, kind: str) -> Any:
    """What pydantic checks a parameter by; the bounds of a list's name hold for each of its items."""
    found = KINDS.fullmatch(kind)
    if not found:
        raise ParameterError(
            f"annotation of {name!r}: expected int, float, str, bool, list[...] or X | None, got {kind}"
        )
    limits = [limit for limit, patterns in LIMITS if any(fnmatchcase(name, each) for each in patterns.split())]
    bounds = Field(**limits[0]) if limits else Field()
    as_number = BeforeValidator(lambda value: float(value) if isinstance(value, str) else value)
    as_known = AfterValidator(partial(_known, name))
    items = {
        "int": Annotated[int, bounds],
        "float": Annotated[float, as_number, bounds],
        "str": Annotated[str, as_known],
        "bool": bool,
    }
    checked = items[found["item"]]
    if found["list"]:
        as_list = BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value)
        checked = Annotated[list[checked], as_list, Field(min_length=int(name in NOT_EMPTY))]
    return checked | None if found["none"] else checked


def _known(name: str, text: str) -> str:
    try:
        choices.check(name, text)
    except (ValueError, OSError) as error:
        raise PydanticCustomError("choice", "{reason}", {"reason": str(error)}) from error
    return text


def _fault(error: ErrorDetails, values: Mapping, types: Mapping[str, str]) -> str:
    """A fault that pydantic found, in one sentence: expected, got, remedy."""
    name, reason = error["loc"][0], error["type"]
    if name not in types:
        near = difflib.get_close_matches(str(name), types, 1)
        known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(types)}"
        return f"unknown parameter {name!r} ({known})"
    if reason == "missing":
        return f"missing parameter {name!r}"
    value, kind = values[name], types[name]
    if reason == "choice":
        return f"{name}={reprlib.repr(value)}: {error['msg']}"
    if reason == "too_short":
        return f"{name}=[]: expected at least one value, got none"
    if reason == "finite_number" or reason.startswith(("greater_than", "less_than")):
        expected = error["msg"].removeprefix("Input should be ")
    else:
        expected = f"{kind}, got {type(value).__name__}{_remedy(name, value, kind)}"
    return f"{name}={reprlib.repr(value)}: expected {expected}"


def _remedy(name: str, value, kind: str) -> str:
    if kind.startswith("list["):
        return f"; write {name}: [..., ...] (papermill: -y '{name}: [..., ...]')"
    if kind.startswith("str") and value is not None:
        return f"; write it in quotes (papermill: -r {name} ...)"
    return ""
