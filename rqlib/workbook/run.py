"""Run a notebook in batch: parameters checked before a kernel starts, the result whole or absent.

python -m rqlib.workbook.run NOTEBOOK OUT [-f params.yaml]... [-p name=value]... [--report HTML]

The signals USR1 and URG, which a scheduler can send some time before it ends a job, stop the run as soon as its state
is kept; the exit code is then 75, and the same command goes on from there.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rqlib.core import quick_jsonschema  # noqa: F401 - before papermill imports it

# isort: split
import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillException, PapermillExecutionError
from traitlets.config import Config

from rqlib.core import files, stopping
from rqlib.workbook import parameters, recording, report
from rqlib.workbook.parameters import ParameterError

SOCKETS = "rqlib-sockets-"
"""How the names of the folders in /tmp begin in which a run and its kernel meet."""

STOPPED = os.EX_TEMPFAIL
"""Exit code (75) of a run that was asked to stop, and goes on when it is started again."""


def run(notebook: str | Path, out: str | Path, values: dict) -> Path:
    """Execute a notebook with these parameters and write it to ``out``, whole and without the state of widgets.

    If a cell fails, ``out`` stays as it was, and the notebook so far is kept as ``OUT.failed.ipynb`` with the error.

    Raises:
        ParameterError: as `parameters.check`; nothing was started or written.
        PapermillExecutionError: a cell failed.
    """
    checked = parameters.check(values, declared(notebook))
    failed = Path(out).with_suffix(".failed.ipynb")
    files.sweep(Path(out).parent, Path(out).name)
    with files.atomic(out) as part:
        try:
            _execute(notebook, part, checked)
        except BaseException:
            if part.stat().st_size:
                part.replace(failed)
            raise
    failed.unlink(missing_ok=True)
    return Path(out)


def declared(notebook: str | Path) -> dict[str, str]:
    """Name -> type, as text, of a notebook's parameters.

    Raises:
        ParameterError: there is no such notebook, or it has no cell tagged ``parameters``, or several.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise ParameterError(f"{notebook}: expected a notebook (.ipynb), got {error}") from error
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{notebook}: expected one cell tagged 'parameters', got {len(tagged)}")
    return parameters.declared_in("".join(tagged[0]["source"]))


def _execute(notebook: str | Path, out: Path, values: dict) -> None:
    """Let papermill talk to its kernel by sockets in a private folder, so that kernels never compete for a port.

    It warns of parameters that it does not find in the notebook, and finds none of the type ``int | None``. All are
    checked already, so that it need not warn.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with _private_folder() as sockets:
        papermill.execute_notebook(
            notebook,
            out,
            values,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            store_widget_state=False,
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    """A folder in /tmp, whatever TMPDIR says, because the path of a socket may have at most 107 letters.

    Those that killed runs of this user have left are removed.
    """
    for left in Path("/tmp").glob(f"{SOCKETS}????????"):
        with contextlib.suppress(OSError):  # just removed
            found = left.lstat()
            is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_own and time.time() - found.st_mtime > 60 and files.abandoned(left):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SOCKETS, dir="/tmp") as folder:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # until the process ends, however it ends
            yield folder
        finally:
            os.close(handle)


def _ask_kernel_to_stop(*_) -> None:
    """Pass the signal on: one that ends no kernel that does not listen yet."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            child.send_signal(signal.SIGURG)


def read_values(paths: list[str], settings: list[str]) -> dict:
    """Parameters from YAML files, then from ``name=value`` settings (the value in YAML). Later ones win.

    Raises:
        ParameterError: a file is missing or is no mapping, or a setting has no ``=``.
    """
    values: dict = {}
    for path in paths:
        values |= _yaml_file(path)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(f"-p {setting}: expected name=value")
        values[name] = parameters.from_yaml(value, f"-p {setting}")
    return values


def _yaml_file(path: str) -> dict:
    try:
        content = parameters.from_yaml(Path(path).read_text(encoding="utf-8"), path) or {}
    except OSError as error:
        raise ParameterError(f"{path}: expected a parameter file, got {error.strerror}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path}: expected lines 'name: value', got a {type(content).__name__}")
    return content


def _report(html: str, out: str) -> None:
    """Write the report; if that fails, only say so, because the results are whole."""
    try:
        report.write(html, out)
    except Exception as error:
        again = f"python -m rqlib.workbook.report {shlex.quote(out)} {shlex.quote(html)}"
        reason = " ".join(str(error).split())
        print(f"warning: no report {html} ({reason}); the results are whole. Write it by: {again}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """The command line: if something is wrong, one line on standard error and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m rqlib.workbook.run", description="Run a notebook in batch.")
    parser.add_argument("notebook")
    parser.add_argument("out", help="the executed notebook")
    parser.add_argument("-f", metavar="FILE", dest="files", default=[], action="append", help="parameters in YAML")
    parser.add_argument("-p", metavar="NAME=VALUE", dest="settings", default=[], action="append", help="one parameter")
    parser.add_argument("--report", metavar="HTML", help="also write the executed notebook as one offline HTML")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the kernel ends, too
    for number in stopping.SIGNALS:
        signal.signal(number, _ask_kernel_to_stop)
    try:
        values = read_values(given.files, given.settings)
        with recording.keeping(Path(given.out).parent.resolve()):
            run(given.notebook, given.out, values)
            if given.report:
                _report(given.report, given.out)
    except ParameterError as error:
        raise SystemExit(f"{given.notebook}: {error}") from None
    except PapermillExecutionError as error:
        if error.ename == stopping.StoppedError.__name__:
            print(f"{given.notebook}: {error.evalue}", file=sys.stderr)
            raise SystemExit(STOPPED) from None
        reason = f"failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
        raise SystemExit(f"{given.notebook} {reason} (see {Path(given.out).with_suffix('.failed.ipynb')})") from None
    except DeadKernelError as error:
        reason = "most often because the machine has no memory left; give it more, or fewer images at a time"
        raise SystemExit(f"{given.notebook} failed: {error}, {reason}") from None
    except (PapermillException, RuntimeError, OSError, ValueError) as error:
        raise SystemExit(f"{given.notebook} failed: {error}") from None


if __name__ == "__main__":
    main()
