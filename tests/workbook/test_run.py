"""Batch runs: faults are said before a kernel starts; what is written is whole or named as failed."""

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from rqlib import workbook
from rqlib.core import plain_yaml
from rqlib.workbook import run
from rqlib.workbook.parameters import ParameterError

PARAMETERS = """
epochs: int = 2  # passes over the data
rate: float = 0.1  # learning rate
seeds: list[int] = [0, 1]  # seeds
images: int | None = None  # so many images
""".strip()
RECORDS = [
    "from rqlib import workbook\nrun = workbook.Run('05_tiny', globals())",
    "for seed in seeds:\n    run.record(seed=seed, accuracy=rate * epochs * seed)\nprint('recorded', flush=True)",
    "import plotly.graph_objects as go\nfigure = go.FigureWidget(go.Scatter(y=run.frame().accuracy))\nfigure",
    "go.Figure(figure)",
    "run.finish(best=run.frame().accuracy.max())",
]


def write(path: Path, *sources: str) -> Path:
    """A notebook with these cells after its parameters."""
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# A tiny notebook"), parameters, *map(nbformat.v4.new_code_cell, sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write(tmp_path / "05_tiny.ipynb", *RECORDS)


def command(module: str, *arguments) -> subprocess.CompletedProcess:
    """A command line, in another folder than the notebook's and the workbook's; nothing may be left there."""
    line = [sys.executable, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as here:
        done = subprocess.run(line, cwd=here, capture_output=True, text=True, timeout=120)
        assert not os.listdir(here)
    return done


def test_a_whole_run_with_its_report(notebook, tmp_path):
    values, more, out = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "deep" / "out.ipynb"
    values.write_text("epochs: 9\nrate: 1e-3\nimages: 5\n")
    more.write_text("epochs: 7\n")
    page = tmp_path / "deep" / "out.html"
    done = command(
        "rqlib.workbook.run", notebook, out, "-f", values, "-f", more, "-p", "seeds=[3, 4]", "--report", page
    )
    assert done.returncode == 0, done.stderr
    assert "recorded" in done.stdout
    assert "unknown parameter" not in done.stderr  # all are declared
    (folder,) = (tmp_path / "outputs" / "05_tiny").iterdir()
    record = json.loads((folder / "run.json").read_text())
    expected = {"epochs": 7, "rate": 0.001, "seeds": [3, 4], "images": 5}
    assert (record["status"], record["parameters"]) == ("done", expected)
    frame = workbook.collect("05_tiny", tmp_path / "outputs")
    assert frame.accuracy.tolist() == [0.001 * 7 * 3, 0.001 * 7 * 4]
    assert "widgets" not in nbformat.read(out, 4).metadata
    assert out.stat().st_size < 100_000
    assert page.read_text().count("Plotly.newPlot(") >= 1
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.html", "out.ipynb"]


def test_a_report_that_cannot_be_written_is_only_said(notebook, tmp_path):
    """It holds a library of 4 MB, and the shell forbids files of more than 1 MB."""
    folder, content = tmp_path / "outputs" / "05_tiny" / "mine", nbformat.read(notebook, 4)
    content.cells[1].source += '\nrun_folder: str = ""  # where the results are written'
    nbformat.write(content, notebook)
    line = f"ulimit -f 1000; {sys.executable} -m rqlib.workbook.run {notebook} {folder}/notebook.ipynb"
    line += f" -p run_folder={folder} --report {folder}/report.html"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"warning: no report {folder}/report.html ([Errno 27] File too large); the results are whole"
    )
    assert last.endswith(f"python -m rqlib.workbook.report {folder}/notebook.ipynb {folder}/report.html")
    made = {path.name for path in folder.iterdir()}
    assert made == {".lock", "notebook.ipynb", "params.yaml", "rows.parquet", "run.json"}
    assert len(workbook.collect("05_tiny", tmp_path / "outputs")) == 2


def test_bare_papermill_stops_at_the_run_cell(notebook, tmp_path):
    values = tmp_path / "a.yaml"
    values.write_text("epochs: 1e-3\n")
    given = ["-f", values, "-y", "{rate: fast, seeds: 1}", "-p", "epocs", 3]
    done = command("papermill", "--no-progress-bar", notebook, tmp_path / "out.ipynb", *given)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == (
        "ParameterError: epochs='1e-3': expected int, got str; rate='fast': expected float, got str; "
        "seeds=1: expected list[int], got int; write seeds: [..., ...] (papermill: -y 'seeds: [..., ...]'); "
        "unknown parameter 'epocs' (did you mean 'epochs'?)"
    )
    assert not (tmp_path / "outputs").exists()


@pytest.fixture
def no_kernel(monkeypatch):
    """No kernel may start, and the process's own handling of signals stays."""
    monkeypatch.setattr(run, "_execute", lambda *_: pytest.fail("a kernel was started"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "epocs=3"], r"05_tiny.ipynb: unknown parameter 'epocs' \(did you mean 'epochs'\?\)$"),
        (
            ["-p", "epocs=3", "-p", "epochs=-1", "-p", "rate=x"],
            "epochs=-1: expected gr.*; rate='x': .*; unknown parameter 'epocs'",
        ),
        (["-p", "seeds=3"], r"seeds=3: expected list\[int\], got int; write seeds: "),
        (["-p", "epochs"], "-p epochs: expected name=value"),
        (["-p", "seeds=[1"], r"-p seeds=\[1: expected YAML"),
        (["-f", "{folder}/none.yaml"], "none.yaml: expected a parameter file, got No such file"),
        (["-f", "{folder}/list.yaml"], "list.yaml: expected lines 'name: value', got a list"),
        (["-f", "{folder}/broken.yaml"], "broken.yaml: expected YAML"),
        (["-f", "{folder}/unknown.yaml", "-p", "epochs=1"], "unknown parameter 'sedes'"),
    ],
)
def test_bad_parameters_start_and_write_nothing(notebook, tmp_path, arguments, message):
    texts = {"list": "[1, 2]", "broken": "a: [", "unknown": "sedes: [1]"}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=message) as caught:
        run.main([str(notebook), str(tmp_path / "new" / "out.ipynb"), *(a.format(folder=tmp_path) for a in arguments)])
    assert "\n" not in caught.value.code
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize("content", [None, "not json", "{}", '{"cells": []}'])
def test_what_is_no_notebook(tmp_path, content):
    path = tmp_path / "a.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ParameterError, match="a.ipynb: expected (a notebook|one cell tagged 'parameters')"):
        run.run(path, tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_values_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\nb: 1\nc: 1\n")
    (tmp_path / "b.yaml").write_text("b: 2\nc: 2\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    paths = [str(tmp_path / name) for name in ("a.yaml", "b.yaml", "empty.yaml")]
    assert run.read_values(paths, ["c=a=3", "d=", "e=[x]"]) == {"a": 1, "b": 2, "c": "a=3", "d": None, "e": ["x"]}


def test_a_failed_cell_keeps_the_notebook_under_another_name(tmp_path):
    notebook, out = write(tmp_path / "05_tiny.ipynb", "assert not epochs, 'broken on purpose'"), tmp_path / "out.ipynb"
    out.write_text("an older whole one")
    done = command("rqlib.workbook.run", notebook, out)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.endswith(f"failed in cell 2: AssertionError: broken on purpose (see {tmp_path / 'out.failed.ipynb'})")
    cells = nbformat.read(tmp_path / "out.failed.ipynb", 4).cells
    assert [output.ename for output in cells[-1].outputs if output.output_type == "error"] == ["AssertionError"]
    assert out.read_text() == "an older whole one"
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("victim", ["runner", "kernel"])
def test_a_killed_run_leaves_no_notebook_that_looks_whole(tmp_path, victim):
    out = tmp_path / "out.ipynb"
    notebook = write(tmp_path / "05_tiny.ipynb", "import time\nprint('begun', flush=True)\ntime.sleep(600)")
    arguments = [sys.executable, "-m", "rqlib.workbook.run", str(notebook), str(out)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "begun" not in process.stdout.readline():
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if victim == "runner":
        process.terminate()
    else:
        os.kill(int(children[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (143 if victim == "runner" else 1)
    last = said.strip().splitlines()[-1]
    assert victim == "runner" or f"{notebook} failed: Kernel died, most often because the machine has no memory" in last
    assert not out.exists()
    assert (tmp_path / "out.failed.ipynb").exists()
    wait_for_the_end(children[0])


STOPS = """
import time
from rqlib.core.resumable import Resumable
state = Resumable(run.unfinished("sum.pt"), {}, kind="sum")
done = state.load().get("done", 0)
print("begun at", done, flush=True)
while done < 5:
    time.sleep(0.5)
    done += 1
    state.save(done=done)
"""


def test_a_run_that_is_told_to_stop_keeps_its_state_and_goes_on(tmp_path):
    out = tmp_path / "out.ipynb"
    notebook = write(tmp_path / "05_tiny.ipynb", RECORDS[0], STOPS, "run.finish(done=done)")
    arguments = [sys.executable, "-m", "rqlib.workbook.run", str(notebook), str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, **pipes)
    while "begun at 0" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == run.STOPPED == 75
    assert said.strip().splitlines()[-1].startswith(f"{notebook}: stopped as asked by a signal, the state is kept")
    assert not out.exists()
    again = command("rqlib.workbook.run", notebook, out)
    assert again.returncode == 0, again.stderr
    assert "begun at 0" not in again.stdout
    assert "done = 5" in again.stdout


def test_what_killed_runs_have_left_is_removed(tmp_path):
    left, young = (Path(tempfile.mkdtemp(prefix="rqlib-sockets-", dir="/tmp")) for _ in range(2))
    os.utime(left, (0, 0))
    part = tmp_path / ".out.ipynb.0a1b2c3d.ipynb"
    part.write_text("half")
    try:
        with run._private_folder() as mine:
            os.utime(mine, (0, 0))
            with run._private_folder():
                assert Path(mine).exists(), "its run lives"
        assert not left.exists()
        assert young.exists(), "its run may just have made it"
    finally:
        young.rmdir()
    notebook = write(tmp_path / "05_tiny.ipynb", "assert not epochs")
    command("rqlib.workbook.run", notebook, tmp_path / "out.ipynb")
    assert not part.exists()


def test_a_run_of_the_graph_says_how_it_is_repeated_by_hand(notebook, tmp_path):
    """From the parameters in its folder, whatever characters the folder's name holds."""
    folder = tmp_path / "outputs" / "05_tiny" / "a ü $(touch x)"
    values = {"rate": 1e-05, "seeds": [*range(50)]}
    done = command("rqlib.workbook.batch", notebook, folder / "notebook.ipynb", json.dumps(values))
    assert done.returncode == 0, done.stderr
    by_hand = done.stdout.splitlines()[0].removeprefix("by hand: ")
    shown = re.sub("<[^>]*>", "", (folder / "report.html").read_text())  # without the colors of words
    assert by_hand in html.unescape(shown)
    assert plain_yaml.load((folder / "params.yaml").read_text()) == values
    (path,) = tmp_path.rglob("rows.parquet")
    rows = path.read_bytes()
    path.unlink()
    line = shlex.split(by_hand)
    assert line[0] == "python"
    again = subprocess.run([sys.executable, *line[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert path.read_bytes() == rows
    assert not (tmp_path / "x").exists()


def wait_for_the_end(process: str) -> None:
    """Until the process is gone, or waits for its parent's look only."""
    deadline, line = time.monotonic() + 30, Path(f"/proc/{process}/cmdline")
    while line.exists() and line.read_bytes():
        assert time.monotonic() < deadline, "the kernel outlives its runner"
        time.sleep(0.1)
