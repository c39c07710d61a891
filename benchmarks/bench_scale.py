"""Thousands of runs: planning them, and reading what they have left; processor time against budgets."""

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rqlib.core import plain_yaml, runtime
from rqlib.workbook import recording, results, seeds

ROOT = Path(__file__).parents[1]
TRAININGS, FINISHED, FORMATS = 2000, 1000, 43
PRESET = {
    "01_train": [{"model": ["SmallCNN", "CNN_small"], "seed": list(range(TRAININGS // 2))}],
    "02_quantize": [{"granularity": ["tensor"]}],
    "03_fit": [{"feature": [f"js_{number}" for number in range(10)]}],
    "04_generator": [{"generator_seed": [0]}],
    "05_robust": [{"norm": ["Linf"]}],
    "06_prune": [{"same": ["seed"]}],
}


def against(work: str, budget: float, seconds: float, agree: str) -> dict:
    """One line of the table."""
    measured = {"seconds": seconds, "peer_seconds": budget, "ratio": budget / seconds}
    return {"work": f"{work}: processor time", "peer": "a budget", **measured, "at_least": 1.0, "agree": agree}


def planning(folder: Path) -> dict:
    """One row: Snakemake plans a preset of 10,010 runs of all six notebooks.

    Raises:
        RuntimeError: it plans another number of runs, or fails.
    """
    (folder / "big").mkdir()
    for name, values in ({"workflow": PRESET} | {notebook: {} for notebook in PRESET}).items():
        (folder / f"big/{name}.yaml").write_text(plain_yaml.dump(values))
    line = [Path(sys.executable).with_name("snakemake"), "-n", "--quiet", "rules", "--nolock"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [*line, "--config", "preset=big", f"params={folder}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    expected = 5 * TRAININGS + 11  # ten fits, and the rule `all`
    if not any(line.split() == ["total", str(expected)] for line in done.stdout.splitlines()):
        raise RuntimeError(f"expected {expected} jobs, got {done.stdout[-1000:]} {done.stderr[-1000:]}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    megabytes = f"{after.ru_maxrss / 1024:.0f} MB, of at most 500"
    return against("plan 10,010 runs of six notebooks", 30.0, seconds, megabytes)


@contextlib.contextmanager
def outputs(folder: Path) -> Iterator[None]:
    """Inside the block runs are written to the folder, and what they print is not shown."""
    before = os.environ.get("RQLIB_OUTPUTS")
    os.environ["RQLIB_OUTPUTS"] = str(folder)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        del os.environ["RQLIB_OUTPUTS"]
        if before is not None:
            os.environ["RQLIB_OUTPUTS"] = before


def finish(number: int) -> None:
    """A run with one row per format and about as many columns as those of 02_quantize: ten seeds of each model."""
    values = {"dataset": "digits", "model": f"networks:number_{number // 10}", "seed": number % 10}
    values |= {f"setting_{letter}": letter for letter in "abcdefghij"}
    types = {name: type(value) for name, value in values.items()}
    run = recording.Run("02_quantize", {"__annotations__": types, **values})
    for bits in range(FORMATS):
        figures = {f"figure_{index}": (number + bits * index) / 1e4 for index in range(40)}
        run.record(format=f"INT_{bits}", **figures)
    run.finish()


def seconds_of(call: Callable[[], object]) -> float:
    """Processor time of a call: the median of five after one to warm up."""
    taken = []
    for _ in range(6):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return statistics.median(taken[1:])


def reading(folder: Path) -> list[dict]:
    """Two rows: the rows of all finished runs, and their mean over seeds."""
    with outputs(folder):
        for number in range(FINISHED):
            finish(number)
        rows, means = len(results.collect("02_quantize")), len(seeds.over_seeds("02_quantize"))
        collected = seconds_of(lambda: results.collect("02_quantize"))
        averaged = seconds_of(lambda: seeds.over_seeds("02_quantize"))
    return [
        against(f"collect {FINISHED:,} finished runs", 2.0, collected, f"{rows:,} rows"),
        against(f"mean over the seeds of {FINISHED:,} finished runs", 3.0, averaged, f"{means:,} rows"),
    ]


def measure() -> list[dict]:
    """Planning, then reading."""
    with tempfile.TemporaryDirectory() as folder, runtime.using("cpu", "float32"):
        return [planning(Path(folder)), *reading(Path(folder) / "outputs")]
