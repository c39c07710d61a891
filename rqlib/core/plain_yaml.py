"""YAML in which a number is the number that a reader sees: in YAML 1.1, ``010`` is 8 and ``1:30`` is 90."""

import re
from typing import Any

import yaml

SURPRISING = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_.]+)+)")
"""Numbers in base 8 that do not look so, and numbers in base 60."""


class _Loader(yaml.SafeLoader):
    """Refuses surprising numbers, and reads ``1e-3`` as a number."""


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    value = getattr(loader, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)
    if SURPRISING.fullmatch(node.value):
        plain = re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", node.value) if ":" not in node.value else repr(node.value)
        raise ValueError(f"expected a plain number, got {node.value}, which YAML reads as {value}; write {plain}")
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes a text that the loader would read as a number."""


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)
for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def load(text: str) -> Any:
    """The value of a text in YAML; nothing in it is executed.

    Raises:
        ValueError: the text is not YAML, or holds a number that YAML reads otherwise than it looks.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML, got {' '.join(str(error).split())}") from error


def dump(values: dict) -> str:
    """The text in YAML of which `load` gives these plain values again, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
