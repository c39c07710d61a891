"""Finished runs of notebooks, found on disk: where they lie, which of them fits, their rows as one table.

Every run owns a folder ``outputs/NN_name/IDENTITY/`` (see `recording`); only runs that have finished count here.
"""

import os
import warnings
from pathlib import Path

import numpy
import pandas
import pyarrow
import pydantic

from rqlib.core import files


class _Machine(pydantic.BaseModel, extra="allow"):
    processor: str
    cores: int | None
    gpu: str | None


class _Policy(pydantic.BaseModel, extra="allow"):
    precision: str


class _Versions(pydantic.BaseModel, extra="allow"):
    torch: str | None


class _Record(pydantic.BaseModel, extra="allow", strict=True):
    """What is read of every `run.json`."""

    notebook: str
    status: str
    started: str
    parameters: dict


class _Finished(_Record):
    """What is read of a run that has finished; ``files`` are the names of what it wrote, None in older ones."""

    rows: int
    seconds: float
    summary: dict
    machine: _Machine
    policy: _Policy
    versions: _Versions
    files: list[str] | None = None


def outputs_folder() -> Path:
    """Where all runs lie: ``RQLIB_OUTPUTS``, or `outputs` in the workbook's folder."""
    return (files.project_root() / os.environ.get("RQLIB_OUTPUTS", "outputs")).resolve()


def finished(notebook: str, outputs: str | Path | None = None, *, preset: str = "") -> list[dict]:
    """The `run.json` of every finished run of a notebook, each with its ``folder``, in the order of the folders.

    A run is left out, with a warning that names it, if its `run.json` is damaged or a file is missing that it wrote.
    With a ``preset`` these are the runs that it made, into folders that it named: their names begin with it.
    """
    records = _records(notebook, outputs)
    return _done([record for record in records if not preset or _is_made_by(preset, record)])


def _is_made_by(preset: str, record: dict) -> bool:
    return bool(record["parameters"].get("run_folder")) and f"{record['folder'].name}-".startswith(f"{preset}-")


def unfinished(notebook: str, outputs: str | Path | None = None) -> list[dict]:
    """As `finished`, every run that has not finished: it runs, or was interrupted."""
    return [record for record in _records(notebook, outputs) if record["status"] != "done"]


def find(notebook: str, outputs: str | Path | None = None, **wanted) -> Path:
    """Folder of the latest finished run of a notebook with these parameters (``find("01_train", seed=0)``).

    Raises:
        FileNotFoundError: there is none; the message names the command that makes it.
    """
    matching = [run for run in finished(notebook, outputs) if wanted.items() <= run["parameters"].items()]
    if not matching:
        raise _none(notebook, outputs, wanted)
    return max(matching, key=lambda run: run["started"])["folder"]


def matching(notebook: str, pattern: str) -> list[Path]:
    """Folders of the finished runs of a notebook whose names match a pattern, with ``*`` for anything.

    Raises:
        FileNotFoundError: there is none; the message says where was looked.
    """
    found = [run["folder"] for run in finished(notebook) if run["folder"].match(pattern)]
    if not found:
        raise FileNotFoundError(
            f"study={pattern!r}: expected finished runs with such names in {outputs_folder() / notebook}, "
            "found none; make them, for example: make workbook PRESET=digits_defenses"
        )
    return found


def collect(notebook: str, outputs: str | Path | None = None) -> pandas.DataFrame:
    """The rows of all finished runs of a notebook, one below the other, with the column ``run`` (its folder).

    Unfinished runs are left out, and a line is printed that says how many.

    Raises:
        FileNotFoundError: no run has finished; the message names the command that makes one.
        ValueError: a table is damaged; the message names it.
    """
    base, records = Path(outputs or outputs_folder()), _records(notebook, outputs)
    done = [record["folder"] for record in _done(records)]
    if len(done) < len(records):
        print(f"{notebook}: {len(done)} of {len(records)} runs have finished; the others are left out")
    rows = rows_of(done, base)
    if rows is None:
        raise _none(notebook, outputs, {})
    return rows


def rows_of(folders: list[Path], base: Path) -> pandas.DataFrame | None:
    """The rows of runs, one below the other, with the column ``run`` (the folder below ``base``); None if none has any.

    Arrow reads and joins them, because pandas takes ten times as long for a thousand small tables.

    Raises:
        ValueError: a table is damaged; the message names it.
    """
    paths = {folder: folder / "rows.parquet" for folder in folders}
    tables = {folder: files.load_arrow(path) for folder, path in paths.items() if path.is_file()}
    if not tables:
        return None
    try:
        rows = (
            pyarrow.concat_tables(tables.values(), promote_options="permissive").replace_schema_metadata().to_pandas()
        )
    except pyarrow.ArrowTypeError:  # a column is text in one run and a number in another
        rows = pandas.concat([table.to_pandas() for table in tables.values()], ignore_index=True)
    names = [folder.relative_to(base).as_posix() for folder in tables]
    return rows.assign(run=numpy.repeat(names, [len(table) for table in tables.values()]))


def _records(notebook: str, outputs: str | Path | None) -> list[dict]:
    """The readable `run.json` of all runs of a notebook; a warning names each one that is not."""
    found = map(_record, sorted(Path(outputs or outputs_folder()).rglob("run.json")))
    return [record for record in found if record and record["notebook"] == notebook]


def _record(path: Path) -> dict | None:
    try:
        content = files.load_json(path)
        record = (_Finished if content.get("status") == "done" else _Record).model_validate(content)
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        warnings.warn(f"run left out: {path}: expected the record of a run, got {faults}; run it again", stacklevel=2)
    except (OSError, ValueError) as error:
        warnings.warn(f"run left out: {error}", stacklevel=2)
    else:
        return record.model_dump() | {"folder": path.parent}
    return None


def _done(records: list[dict]) -> list[dict]:
    """Those that have finished, and whose files are all there."""
    return [record for record in records if record["status"] == "done" and _is_whole(record)]


def _is_whole(record: dict) -> bool:
    """Whether all files are there that a finished run has promised; a warning names those that are not."""
    usual = (["rows.parquet"] if record["rows"] else []) + ["checkpoint.pt"] * (record["notebook"] == "01_train")
    promised = usual if record["files"] is None else record["files"]
    missing = [name for name in promised if not (record["folder"] / name).is_file()]
    if missing:
        warnings.warn(f"run left out: {record['folder']} has no {', '.join(missing)}; run it again", stacklevel=3)
    return not missing


def _none(notebook: str, outputs: str | Path | None, wanted: dict) -> FileNotFoundError:
    settings = "".join(f" -p {name}={value}" for name, value in wanted.items())
    return FileNotFoundError(
        f"expected a finished run of {notebook}{' with' if wanted else ''}{settings.replace(' -p', '')} in "
        f"{outputs or outputs_folder()}, found none; make it: "
        f"python -m rqlib.workbook.run notebooks/{notebook}.ipynb outputs/{notebook}.ipynb{settings}"
    )
