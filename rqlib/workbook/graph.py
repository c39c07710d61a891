"""Run the graph of a preset: one line per finished run, one bar with the time left.

python -m rqlib.workbook.graph --cores 2 --config preset=digits      the options are Snakemake's

All that Snakemake and the notebooks print goes to ``workbook.log`` in the folder of the outputs.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from rqlib.workbook import results

STEPS = re.compile(r"^(\d+) of (\d+) steps \(")
"""What Snakemake prints after every run."""

MARK = "==> "
"""Lines that begin so are also printed: `batch` prints one for every run."""


def run(options: list[str], log: Path) -> int:
    """Run Snakemake with these options and print the lines that are marked; returns its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "snakemake", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        log.open("w", encoding="utf-8") as kept,
        subprocess.Popen(command, **pipes, encoding="utf-8", errors="replace") as process,
        tqdm(
            disable=None, bar_format="{l_bar}{bar}| {n_fmt} of {total_fmt} steps, {remaining} left", leave=False
        ) as bar,
    ):
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # so that Snakemake ends its runs
        for line in process.stdout:
            kept.write(line)
            kept.flush()
            if line.startswith(MARK):
                bar.write(line.removeprefix(MARK).rstrip())
            if done := STEPS.match(line):
                bar.n, bar.total = map(int, done.groups())
                bar.refresh()
    return process.returncode


def main(options: list[str] | None = None) -> None:
    """The command line; the exit code is 1 if a run has not finished."""
    log = results.outputs_folder() / "workbook.log"
    try:
        code = run(sys.argv[1:] if options is None else options, log)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; finished runs are kept, and the others go on where they are (see {log})") from None
    except OSError as error:
        raise SystemExit(
            f"{log}: expected a folder that can be written, got {error.strerror}; set RQLIB_OUTPUTS to another one"
        ) from None
    if code:
        raise SystemExit(f"not every run has finished; the same command goes on where it stopped (see {log})")


if __name__ == "__main__":
    main()
