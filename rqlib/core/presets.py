"""The runs that a preset lists: every combination of its groups' values, each with the name of a folder."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

MOST_OTHERS = 4
"""So many other networks attack one in `05_robust` that names none."""

LONGEST_NAME = 180
"""Characters of a folder's name; file systems take 255 bytes."""


def combinations(group: Mapping[str, list]) -> Iterator[dict]:
    """Every combination of a group's lists, as dicts: ``{seed: [0, 1]}`` gives ``{seed: 0}`` and ``{seed: 1}``.

    Raises:
        ValueError: the value of a name is no list.
    """
    for name, values in group.items():
        if not isinstance(values, list):
            raise ValueError(f"{name}: expected a list of values, got {values!r}; write {name}: [{values}]")
    for values in itertools.product(*group.values()):
        yield dict(zip(group, values, strict=True))


def folder_name(*parts) -> str:
    """Name of a run's folder: its values joined by ``-``, and the values of a list by ``+``.

    Only letters, digits and ``_ . : * + -`` are kept; other characters become underscores. A long name is cut, and
    ends with a hash of the whole.
    """
    words = ("+".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts)
    whole = "-".join(words)
    name = re.sub(r"[^\w.:*+-]", "_", whole)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def by_folder(runs: Iterable[tuple[str, dict]]) -> dict[str, dict]:
    """Folder -> the values of its run. A run that is listed twice is made once.

    Raises:
        ValueError: runs with different values have the same folder; names both.
    """
    found: dict[str, dict] = {}
    for folder, values in runs:
        if found.setdefault(folder, values) != values:
            differ = [name for name in {**found[folder], **values} if found[folder].get(name) != values.get(name)]
            one, other = ({name: run[name] for name in differ if name in run} for run in (found[folder], values))
            raise ValueError(
                f"expected one folder per run, got {folder} for a run with {one} and for one with {other}; "
                "list a value that tells them apart in both groups"
            )
    return found
