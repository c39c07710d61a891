"""Are the results of two outputs folders the same, to the last bit? For changes that must change nothing.

python -m benchmarks.same_results BEFORE AFTER

Compares every table (``*.parquet``) and every file of tensors (``*.pt``) of both folders. Columns and rows of seconds
are left out, and paths are read relative to their folder. Prints what differs, and exits with 1 if anything does.
"""

import argparse
import sys
from pathlib import Path

import pandas
import torch

from rqlib.core import files


def differences(before: Path, after: Path) -> list[str]:
    """One line for each table, tensor or value that differs, and for each file that only one folder has."""
    names = [{path.relative_to(root) for path in root.rglob("*") if _is_compared(path)} for root in (before, after)]
    found = [f"only in one folder: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        compare = _tables if name.suffix == ".parquet" else _tensors
        found += [f"{name}: {fault}" for fault in compare(before / name, after / name, before, after)]
    return found


def _is_compared(path: Path) -> bool:
    whole = not path.name.startswith(".")  # `kill -9` leaves half a file beside the old one
    return whole and path.suffix in (".parquet", ".pt") and "unfinished" not in path.parts


def _tables(one: Path, other: Path, before: Path, after: Path) -> list[str]:
    first, second = _read(one, before), _read(other, after)
    if list(first) != list(second) or len(first) != len(second):
        return [f"{first.shape} {sorted(set(first) ^ set(second))} instead of {second.shape}"]
    return [f"column {name}" for name in first if not first[name].equals(second[name])]


def _read(path: Path, root: Path) -> pandas.DataFrame:
    frame = pandas.read_parquet(path)
    frame = frame.loc[[name for name in frame.index if "second" not in str(name)]]
    frame = frame[[name for name in frame if "second" not in str(name)]]
    texts = frame.select_dtypes(["object", "string"])
    return frame.assign(**{name: texts[name].map(lambda text: str(text).replace(str(root), "")) for name in texts})


def _tensors(one: Path, other: Path, before: Path, after: Path) -> list[str]:
    first, second = _flat(files.load_tensors(one)), _flat(files.load_tensors(other))
    faults = [f"only in one file: {name}" for name in sorted(first.keys() ^ second.keys())]
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else str(a).replace(str(before), str(after)) == str(b)
        faults += [] if same else [f"{name} differs"]
    return faults


def _flat(value, name: str = "") -> dict:
    """Every tensor and plain value of nested dicts, by its path."""
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, part in value.items() for path, leaf in _flat(part, f"{name}/{key}").items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_results", description=__doc__.split("\n", 1)[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    found = differences(given.before.resolve(), given.after.resolve())
    compared = [path for path in given.before.rglob("*") if _is_compared(path)]
    print("\n".join([*found, f"{len(compared)} files compared, {len(found)} differences"]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
