"""Run every ``bench_*.py`` (or those named), print one table, write outputs/reference/benchmarks.csv.

python -m benchmarks [training attacks ...]
"""

import importlib
import sys
from pathlib import Path

import pandas

from rqlib.core import files, machine

FOLDER = Path(__file__).parent
TABLE = FOLDER.parent / "outputs/reference/benchmarks.csv"


def main(names: list[str]) -> None:
    """Measure, print, and replace the rows of what was measured."""
    names = names or sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    found = machine.describe()
    tables = []
    for name in names:
        rows = pandas.DataFrame(importlib.import_module(f"benchmarks.bench_{name}").measure())
        rows.insert(0, "benchmark", name)
        rows["machine"] = f"{found['processor']}, {found['cores']} cores, GPU {found['gpu']}, torch {found['torch']}"
        print(rows.drop(columns="machine").to_string(index=False, float_format="%.4g"), flush=True)
        tables.append(rows)
    if TABLE.exists():
        before = pandas.read_csv(TABLE)
        tables.insert(0, before[~before.benchmark.isin(names)])
    with files.atomic(TABLE) as part:
        pandas.concat(tables).sort_values("benchmark", kind="stable").to_csv(part, index=False, float_format="%.5g")
    print(TABLE)


if __name__ == "__main__":
    main(sys.argv[1:])
