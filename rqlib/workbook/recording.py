"""A run of a notebook: checked parameters, a folder of its own, rows, a record of how they came.

``outputs/NN_name/IDENTITY/`` holds `params.yaml`, `run.json`, `rows.parquet` and what the notebook saves
(`history.parquet`, `checkpoint.pt`). Until the run has finished it also holds `unfinished/`: what an interrupted run
goes on from. A run goes on only with the same parameters and the same code; otherwise it starts afresh.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pandas
import torch
from filelock import FileLock
from torch.nn.utils.parametrize import is_parametrized

from rqlib import models
from rqlib.core import derived, files, machine, plain_yaml, provenance, runtime, stopping
from rqlib.core.parametrizations import bake
from rqlib.core.resumable import BelongsToAnotherError, Resumable
from rqlib.workbook import answer as box_of
from rqlib.workbook import parameters
from rqlib.workbook.parameters import ParameterError
from rqlib.workbook.results import outputs_folder

NO_IDENTITY = ("device", "run_folder")
"""Parameters that say where a run computes and writes, not what it computes."""

LONGEST_TABLE = 200
"""Of tables of so many rows a notebook shows all, and its report folds them; of longer ones the ends."""

SAVE_ROWS_EVERY = 2.0
"""Seconds between two writes of an unfinished run's rows."""

_KEEP = "RQLIB_KEEP_UNFINISHED"  # variable with the folder whose `unfinished/` another process removes

_held: dict[str, FileLock] = {}  # notebook -> the lock of the folder that this process writes to


class Run:
    """One run of a notebook: checked parameters, a folder of its own, rows, a record of how they came.

    Args:
        notebook: file name without its ending, for example ``"05_robust"``.
        namespace: ``globals()`` of the notebook, right after its `parameters` cell. The checked values are
            written back to it (an int given for a float becomes a float).

    Three parameters mean the same in every notebook that has them: ``device`` and ``precision`` become the active
    policy, kept as ``run.policy``; ``run_folder``, if not empty, is the folder and must lie in `outputs_folder`.

    Raises:
        ParameterError: unknown name, wrong type, out of range, folder outside: all faults in one line.
        RuntimeError: another process writes to the same folder.
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
        self._files: set[str] = set()
        again = _hold(notebook, self.folder)
        self._lock = _held[notebook]
        files.sweep(self.folder)
        stopping.listen()
        pandas.set_option("display.max_rows", LONGEST_TABLE)
        self._go_on(afresh=again)
        files.save_text(self.path("params.yaml"), plain_yaml.dump(self.parameters))
        self._write_record()

    def path(self, name: str) -> Path:
        """Where a file of the run lies."""
        return self.folder / name

    def unfinished(self, name: str) -> Path:
        """Where a file lies that an interrupted run goes on from. It is removed when the run has finished."""
        return self.folder / "unfinished" / name

    def record(self, **row) -> None:
        """Add a row: the condition and what was measured under it. `frame` puts the run's parameters before it.

        Two equal rows are one measurement, which is kept once.
        """
        row = {name: _plain(value) for name, value in row.items()}
        self._rows[repr(row)] = row
        if time.monotonic() - self._saved > SAVE_ROWS_EVERY:
            self._resumable.save(rows=[*self._rows.values()])
            self._saved = time.monotonic()

    def frame(self) -> pandas.DataFrame:
        """The rows so far, each after the run's parameters that are single values."""
        scalars = {k: v for k, v in self.parameters.items() if k not in NO_IDENTITY and not isinstance(v, list)}
        return pandas.DataFrame([scalars | row for row in self._rows.values()])

    def save(self, part: str = "", /, **frames: pandas.DataFrame) -> None:
        """Write each table as ``NAME.parquet``, below the folder ``part`` of the run: ``run.save(history=history)``."""
        for name, frame in frames.items():
            files.save_table(self._written(f"{part}/{name}.parquet" if part else f"{name}.parquet"), frame)

    def checkpoint(
        self,
        model: torch.nn.Module,
        name: str,
        spec,
        *,
        file: str = "checkpoint.pt",
        seed: int | None = None,
        **metadata,
    ) -> Path:
        """Write a network's weights, baked and compared, with the run's parameters; arguments as `models.save`.

        Args:
            seed: that the network was trained with; the run's own if None.
        """
        values = self.parameters if seed is None else self.parameters | {"seed": seed}
        plain = bake(model)
        if any(map(is_parametrized, model.modules())):
            x = runtime.active().place(torch.rand(2, *spec.shape, generator=runtime.rng(0)))
            derived.check(model, plain, x, what="baking its weights")
        return models.save(self._written(file), plain, name, spec, parameters=values, **metadata)

    def finish(self, answer: str = "", title: str = "", /, **summary) -> None:
        """Write the rows and mark the run as done; print the key figures and where everything lies.

        Args:
            answer: to the notebook's question, in a sentence; it stands first in the report.
            title: of the network and its images, for the report.
            summary: the key figures.
        """
        if self._rows:
            self.save(rows=self.frame())
        self._record |= {
            "status": "done",
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_memory_mb": _peak_memory(),
            "policy": runtime.active().record(),
            "rows": len(self._rows),
            "files": sorted(self._files),
            "answer": answer,
            "title": title,
            "summary": {name: _plain(value) for name, value in summary.items()},
        }
        self._write_record()
        if os.environ.get(_KEEP) != str(self.folder):
            _remove_unfinished(self.folder)
        self._lock.release()
        figures = [f"  {name} = {value}" for name, value in self._record["summary"].items()]
        print(f"{self.notebook}: done in {self._record['seconds']:.1f} s, {len(self._rows)} rows")
        print("\n".join([*figures, f"  all of it in {self.folder}"]))
        box_of.show(self._record)

    def _written(self, name: str) -> Path:
        """Where a file of the run lies, which is named in `run.json` as one that a finished run has."""
        self._files.add(name)
        return self.path(name)

    def _go_on(self, afresh: bool) -> None:
        """Take up what an interrupted run of the same parameters and code left; remove what any other run left."""
        identity = {"code": self._record["code"], "parameters": self.parameters}
        self._resumable = Resumable(self.unfinished("rows.pt"), identity, kind="run")
        try:
            rows = None if afresh else self._resumable.load().get("rows")
        except BelongsToAnotherError:
            rows = None
            print(f"{self.notebook}: starts afresh; an interrupted run in {self.folder} had other parameters or code")
        if rows is None:
            shutil.rmtree(self.unfinished(""), ignore_errors=True)
            self._resumable.save(rows=[])
        elif rows:
            self._rows = {repr(row): row for row in rows}
            print(f"{self.notebook}: goes on after {len(rows)} rows of an interrupted run in {self.folder}")

    def _write_record(self) -> None:
        files.save_json(self.path("run.json"), self._record)


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[None]:
    """Inside the block, also in its child processes, a run in this folder keeps what an interrupted one goes on from.

    It is removed when the block has succeeded, so that a run whose executed notebook cannot be written is not lost.
    """
    os.environ[_KEEP] = str(folder)
    try:
        yield
    finally:
        del os.environ[_KEEP]
    if (folder / "run.json").is_file():
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    shutil.rmtree(folder / "unfinished", ignore_errors=True)


def identity(values: dict) -> str:
    """Folder name for these parameters: a few of them to read, then a hash of all that say what is computed."""
    what = {name: value for name, value in values.items() if name not in NO_IDENTITY}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    words = [str(what[name]) for name in ("dataset", "model") if name in what]
    seed = [f"seed{what['seed']}"] if "seed" in what else []
    return re.sub(r"[^\w.-]+", "_", "-".join([*words, *seed, digest]))


def _folder(notebook: str, values: dict) -> Path:
    base, given = outputs_folder(), values.get("run_folder")
    folder = (files.project_root() / given if given else base / notebook / identity(values)).resolve()
    if base not in folder.parents:
        raise ParameterError(f"run_folder={given!r}: expected a folder inside {base} (RQLIB_OUTPUTS chooses another)")
    return folder


def _policy(values: dict) -> runtime.Policy:
    """Activate the policy that the parameters ``device`` and ``precision`` ask for, and return it."""
    asked = {name: values[name] for name in ("device", "precision") if name in values}
    return runtime.use(**asked) if asked else runtime.active()


def _hold(notebook: str, folder: Path) -> bool:
    """Lock the folder for this process; return whether it held the same one before, that is, ran the cell again."""
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
        "machine": machine.describe(),
    }


def _peak_memory() -> dict:
    """The most memory used so far, in MB: by the process, and on the GPU (None without one)."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None
    return {"host": round(host), "gpu": device and round(device)}


def _plain(value):
    """The plain number, text, truth value or None in what NumPy and torch return."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float | str | bool | None):
        raise TypeError(f"expected a number or text in a row, got {type(value).__name__}; save tables by run.save")
    return value
