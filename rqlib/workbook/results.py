"""Runs of notebooks: each owns a folder; its rows are written once, whole; tables are made by collecting.

``outputs/NN_name/IDENTITY/`` holds `params.yaml`, `run.json`, `rows.parquet`, what the notebook saves
(`history.parquet`, `checkpoint.pt`), and, until the run has finished, `unfinished/`: what an interrupted
run goes on from. A run goes on only with the same parameters and the same code, and starts afresh otherwise.
"""

import datetime
import hashlib
import json
import os
import re
import resource
import shutil
import time
from pathlib import Path

import pandas
import torch
import yaml
from filelock import FileLock

from rqlib import models
from rqlib.core import files, runtime
from rqlib.core.resumable import BelongsToAnotherError, Resumable
from rqlib.workbook import parameters, provenance
from rqlib.workbook.parameters import ParameterError

NO_IDENTITY = ("device", "run_folder")
"""Parameters that say where a run computes and writes, not what."""

SAVE_ROWS_EVERY = 2.0
"""Seconds between two writes of an unfinished run's rows."""

load_checkpoint, save_checkpoint = models.load, models.save

_held: dict[str, FileLock] = {}  # notebook -> the folder this process writes to


class Run:
    """One run of a notebook: checked parameters, a folder of its own, rows, a record of how they came.

    Args:
        notebook: name without ending, say ``"05_robust"``.
        namespace: ``globals()`` of the notebook, right after its `parameters` cell. Checked values
            are written back (an int given for a float becomes a float). ``device`` and ``precision``
            become the active policy, which ``run.policy`` holds. ``run_folder``, where the
            notebook has this parameter and it is not empty, is the folder; it must lie in `outputs_folder`.

    Raises:
        ParameterError: unknown name, wrong type, out of range, folder outside: all faults in one line.
        RuntimeError: another process runs the same in the same folder.
    """

    def __init__(self, notebook: str, namespace: dict):
        self.notebook = notebook
        self.parameters = parameters.from_namespace(namespace)
        self.folder = _folder(notebook, self.parameters)
        namespace.update(self.parameters)
        self.policy = _policy(self.parameters)
        self._started, self._saved = time.monotonic(), 0.0
        self._record = _record(notebook, self.parameters)
        self._rows: dict[str, dict] = {}
        again = _hold(notebook, self.folder)
        self._lock = _held[notebook]
        self._go_on(afresh=again)
        files.save_text(self.path("params.yaml"), yaml.safe_dump(self.parameters, sort_keys=False, allow_unicode=True))
        self._write_record()

    def path(self, name: str) -> Path:
        """Where a file of the run lies."""
        return self.folder / name

    def unfinished(self, name: str) -> Path:
        """Where a file lies that an interrupted run goes on from; removed when the run has finished."""
        return self.folder / "unfinished" / name

    def record(self, **row) -> None:
        """Add a row: what was measured under which condition; the run's parameters are its first columns.

        Two equal rows are the same measurement: it is kept once.
        """
        row = {name: _plain(value) for name, value in row.items()}
        self._rows[repr(row)] = row
        if time.monotonic() - self._saved > SAVE_ROWS_EVERY:
            self._kept.save(rows=[*self._rows.values()])
            self._saved = time.monotonic()

    def has(self, **condition) -> bool:
        """Whether a row with these values is recorded, say by the interrupted run before: then skip the work."""
        return any(all(row.get(name) == value for name, value in condition.items()) for row in self._rows.values())

    def frame(self) -> pandas.DataFrame:
        """The rows so far, each with the run's scalar parameters."""
        scalars = {k: v for k, v in self.parameters.items() if k not in NO_IDENTITY and not isinstance(v, list)}
        return pandas.DataFrame([scalars | row for row in self._rows.values()])

    def save(self, **frames: pandas.DataFrame) -> None:
        """Write each table as ``NAME.parquet``: ``run.save(history=history, curve=curve)``."""
        for name, frame in frames.items():
            with files.atomic(self.path(f"{name}.parquet")) as part:
                frame.to_parquet(part)

    def checkpoint(self, model: torch.nn.Module, name: str, spec, *, file: str = "checkpoint.pt", **metadata) -> Path:
        """Write a network's plain weights with the run's parameters; arguments as `models.save`."""
        return models.save(self.path(file), model, name, spec, parameters=self.parameters, **metadata)

    def finish(self, **summary) -> None:
        """Write the rows and mark the run as done; print the key figures and where everything lies."""
        if self._rows:
            self.save(rows=self.frame())
        self._record |= {
            "status": "done",
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_memory_mb": _peak_memory(),
            "policy": runtime.active().record(),
            "rows": len(self._rows),
            "summary": {name: _plain(value) for name, value in summary.items()},
        }
        self._write_record()
        shutil.rmtree(self.folder / "unfinished", ignore_errors=True)
        self._lock.release()
        figures = [f"  {name} = {value}" for name, value in self._record["summary"].items()]
        print(f"{self.notebook}: done in {self._record['seconds']:.1f} s, {len(self._rows)} rows")
        print("\n".join([*figures, f"  all of it in {self.folder}"]))

    def _go_on(self, afresh: bool) -> None:
        """Take up what an interrupted run of the same parameters and code left; clear what another left."""
        identity = {"code": self._record["code"], "parameters": self.parameters}
        self._kept = Resumable(self.unfinished("rows.pt"), identity, kind="run")
        try:
            rows = None if afresh else self._kept.load().get("rows")
        except BelongsToAnotherError:
            rows = None
        if rows is None:
            shutil.rmtree(self.unfinished(""), ignore_errors=True)
            self._kept.save(rows=[])
        elif rows:
            self._rows = {repr(row): row for row in rows}
            print(f"{self.notebook}: goes on after {len(rows)} rows of an interrupted run in {self.folder}")

    def _write_record(self) -> None:
        files.save_text(self.path("run.json"), json.dumps(self._record, indent=2))


def outputs_folder() -> Path:
    """Where all runs lie: ``RQLIB_OUTPUTS``, or `outputs` in the workbook's folder."""
    return (files.project_root() / os.environ.get("RQLIB_OUTPUTS", "outputs")).resolve()


def identity(values: dict) -> str:
    """Folder name for these parameters: a few of them to read, and a hash of all that tell what is computed."""
    what = {name: value for name, value in values.items() if name not in NO_IDENTITY}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    words = [str(what[name]) for name in ("dataset", "model") if name in what]
    seed = [f"seed{what['seed']}"] if "seed" in what else []
    return re.sub(r"[^\w.-]+", "_", "-".join([*words, *seed, digest]))


def finished(notebook: str, outputs: str | Path | None = None) -> list[dict]:
    """The `run.json` of every finished run of a notebook, each with its ``folder``, in order of folders."""
    return [record for record in _records(notebook, outputs) if record["status"] == "done"]


def find(notebook: str, outputs: str | Path | None = None, **wanted) -> Path:
    """Folder of the latest finished run of a notebook with these parameters (``find("01_train", seed=0)``).

    Raises:
        FileNotFoundError: there is none; names the command that makes it.
    """
    matching = [run for run in finished(notebook, outputs) if wanted.items() <= run["parameters"].items()]
    if not matching:
        raise _none(notebook, outputs, wanted)
    return max(matching, key=lambda run: run["started"])["folder"]


def collect(notebook: str, outputs: str | Path | None = None) -> pandas.DataFrame:
    """The rows of all finished runs of a notebook, one below the other, with the column ``run`` (its folder).

    Unfinished runs are left out, and said.

    Raises:
        FileNotFoundError: no run has finished; names the command that makes one.
        ValueError: a table is damaged; names it.
    """
    base, records = Path(outputs or outputs_folder()), _records(notebook, outputs)
    done = [record["folder"] for record in records if record["status"] == "done"]
    if len(done) < len(records):
        print(f"{notebook}: {len(done)} of {len(records)} runs have finished; the others are left out")
    tables = [_read(folder, base) for folder in done if (folder / "rows.parquet").is_file()]
    if not tables:
        raise _none(notebook, outputs, {})
    return pandas.concat(tables, ignore_index=True)


def with_other_seeds(rows: pandas.DataFrame, notebook: str, settings: list[str]) -> pandas.DataFrame:
    """The rows of a run, and those of finished runs of the same settings: of other seeds, or other methods and sizes.

    Args:
        settings: columns that must be equal; whatever else sets networks apart belongs to them.
    """
    try:
        others = collect(notebook)
    except FileNotFoundError:
        return rows
    shared = [name for name in settings if name in rows and name in others]
    same = (others[shared] == rows[shared].iloc[0]).all(axis=1)
    return pandas.concat([rows, others[same]], ignore_index=True).drop_duplicates(["seed", "method", "kept"])


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


def _folder(notebook: str, values: dict) -> Path:
    base, given = outputs_folder(), values.get("run_folder")
    folder = (files.project_root() / given if given else base / notebook / identity(values)).resolve()
    if base not in folder.parents:
        raise ParameterError(f"run_folder={given!r}: expected a folder inside {base} (RQLIB_OUTPUTS chooses another)")
    return folder


def _policy(values: dict) -> runtime.Policy:
    """The policy that the parameters ``device`` and ``precision`` ask for, now the active one of the process."""
    asked = {name: values[name] for name in ("device", "precision") if name in values}
    return runtime.use(**asked) if asked else runtime.active()


def _hold(notebook: str, folder: Path) -> bool:
    """Lock the folder for this process; whether it had the same before: a cell was run again, perhaps changed."""
    before = _held.pop(notebook, None)
    if before is not None:
        before.release()
    _held[notebook] = files.lock(folder)
    return before is not None and Path(before.lock_file).parent == folder


def _record(notebook: str, values: dict) -> dict:
    """What is known of a run when it begins."""
    root = files.project_root()
    return {
        "notebook": notebook,
        "parameters": values,
        "status": "running",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        **provenance.describe(root, root / "notebooks" / f"{notebook}.ipynb"),
        "machine": runtime.describe(),
    }


def _peak_memory() -> dict:
    """Most memory used so far, in MB: of the process, and of the GPU where there is one."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None
    return {"host": round(host), "gpu": device and round(device)}


def _plain(value):
    """A number, text, truth value or None, out of what NumPy and torch return."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float | str | bool | None):
        raise TypeError(f"expected a number or text in a row, got {type(value).__name__}; save tables by run.save")
    return value
