"""Finished runs of notebooks, found on disk: where they lie, which of them fits, their rows as one table.

Every run owns a folder ``outputs/NN_name/IDENTITY/`` (see `recording`); only runs that have finished count here.
"""

import json
import os
from pathlib import Path

import pandas

from rqlib.core import files


def outputs_folder() -> Path:
    """Where all runs lie: ``RQLIB_OUTPUTS``, or `outputs` in the workbook's folder."""
    return (files.project_root() / os.environ.get("RQLIB_OUTPUTS", "outputs")).resolve()


def finished(notebook: str, outputs: str | Path | None = None) -> list[dict]:
    """The `run.json` of every finished run of a notebook, each with its ``folder``, in the order of the folders."""
    return [record for record in _records(notebook, outputs) if record["status"] == "done"]


def find(notebook: str, outputs: str | Path | None = None, **wanted) -> Path:
    """Folder of the latest finished run of a notebook with these parameters (``find("01_train", seed=0)``).

    Raises:
        FileNotFoundError: there is none; the message names the command that makes it.
    """
    matching = [run for run in finished(notebook, outputs) if wanted.items() <= run["parameters"].items()]
    if not matching:
        raise _none(notebook, outputs, wanted)
    return max(matching, key=lambda run: run["started"])["folder"]


def collect(notebook: str, outputs: str | Path | None = None) -> pandas.DataFrame:
    """The rows of all finished runs of a notebook, one below the other, with the column ``run`` (its folder).

    Unfinished runs are left out, and a line is printed that says how many.

    Raises:
        FileNotFoundError: no run has finished; the message names the command that makes one.
        ValueError: a table is damaged; the message names it.
    """
    base, records = Path(outputs or outputs_folder()), _records(notebook, outputs)
    done = [record["folder"] for record in records if record["status"] == "done"]
    if len(done) < len(records):
        print(f"{notebook}: {len(done)} of {len(records)} runs have finished; the others are left out")
    tables = [_read(folder, base) for folder in done if (folder / "rows.parquet").is_file()]
    if not tables:
        raise _none(notebook, outputs, {})
    return pandas.concat(tables, ignore_index=True)


def _read(folder: Path, base: Path) -> pandas.DataFrame:
    path = folder / "rows.parquet"
    try:
        return pandas.read_parquet(path).assign(run=folder.relative_to(base).as_posix())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole table ({error}); remove the folder and run it again") from error


def _records(notebook: str, outputs: str | Path | None) -> list[dict]:
    found = sorted(Path(outputs or outputs_folder()).rglob("run.json"))
    records = [json.loads(path.read_text()) | {"folder": path.parent} for path in found]
    return [record for record in records if record.get("notebook") == notebook]


def _none(notebook: str, outputs: str | Path | None, wanted: dict) -> FileNotFoundError:
    settings = "".join(f" -p {name}={value}" for name, value in wanted.items())
    return FileNotFoundError(
        f"expected a finished run of {notebook}{' with' if wanted else ''}{settings.replace(' -p', '')} in "
        f"{outputs or outputs_folder()}, found none; make it: "
        f"python -m rqlib.workbook.run notebooks/{notebook}.ipynb outputs/{notebook}.ipynb{settings}"
    )
