"""Every notebook runs in the graph of the Snakefile; killed and run again it leaves the same results."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy
import pandas
import pytest
import yaml
from PIL import Image

from benchmarks import same_results
from rqlib import workbook
from rqlib.workbook.overview import kinds, measurements, networks, treatments
from tests.notebooks.conftest import snakemake
from tests.notebooks.small import ROOT, SMALL, command, copied, environment, prepare

NBVAL = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "--nbval-lax", "-x"]
RUNS = {  # notebook -> its run in the graph that is killed and compared
    "01_train": "01_train/tiny-ResNet_18-0.25",
    "02_quantize": "02_quantize/tiny-SmallCNN-1.0-tensor",
    "03_fit": "03_fit/tiny-js_macs",
    "04_generator": "04_generator/tiny-SmallCNN-1.0-1",
    "05_robust": "05_robust/tiny-SmallCNN-1.0-Linf",
    "06_prune": "06_prune/tiny-SmallCNN-1.0-natural",
}
MAY_DIFFER = (
    "left_out.parquet: column network",  # where the rows of another run came from
    "checks.parquet: column value",  # one of them is a rounding error of 1e-6
)
STATES = {  # notebook -> a file that it keeps while it computes
    "01_train": "training.pt",
    "02_quantize": "s*.pt",
    "03_fit": "rows.pt",
    "04_generator": "fit.pt",
    "05_robust": "[!r.]*.pt",
    "06_prune": "[!r.]*.pt",
}


def test_the_tables_of_the_graph(graph):
    outputs, formats = graph / "outputs", SMALL["02_quantize"]["formats"]
    trained, quantized = (workbook.collect(notebook, outputs) for notebook in ("01_train", "02_quantize"))
    runs = trained[["model", "width", "epochs_run"]].to_numpy().tolist()
    assert sorted(runs) == [["ResNet_18", 0.25, 2], ["SmallCNN", 1.0, 2]]
    assert trained.test_accuracy.between(0.05, 1).all()
    assert sorted(quantized.model.unique()) == ["ResNet_18", "SmallCNN"]
    assert len(quantized) == 2 * len(formats)
    assert quantized[["accuracy", "js_macs", "relative_error_macs"]].notna().all().all()
    assert workbook.collect("03_fit", outputs).held_out_r2.le(1).all()
    generated = workbook.collect("04_generator", outputs)
    assert generated.model.unique().tolist() == ["SmallCNN"]
    assert generated.format.tolist()[1:] == SMALL["04_generator"]["formats"]
    assert generated.pseudo_accuracy_loss_boundary[1:].le(1).all()
    attacked = workbook.collect("05_robust", outputs).set_index("attack").accuracy
    assert attacked["PGD-3x2"] <= attacked["none"]
    assert attacked["all of these"] <= attacked.drop("all of these").min()
    transfer = pandas.read_parquet(outputs / "05_robust/tiny-SmallCNN-1.0-Linf/transfer.parquet")
    assert transfer.shape == (2, 2), "the other network of the preset attacks this one"
    pruned = workbook.collect("06_prune", outputs)
    assert pruned.model.unique().tolist() == ["SmallCNN"]
    assert {"dense", "lwm", "hydra", "scratch", "hydra INT_8"} <= set(pruned.method)


def test_the_terminal_shows_one_line_per_run(graph):
    _, said, _ = json.loads((graph / "said.json").read_text())
    runs = [f"{path.parents[1].name} {path.parent.name}" for path in (graph / "outputs").rglob("run.json")]
    assert sorted(line.partition(": ")[0] for line in said.splitlines()) == sorted(runs)
    assert "Select jobs to execute" in (graph / "outputs/workbook.log").read_text(encoding="utf-8")


def test_the_overview_shows_every_treatment_of_the_graph(graph, monkeypatch):
    monkeypatch.setenv("RQLIB_OUTPUTS", str(graph / "outputs"))
    measured = measurements.table(networks.sources(SMALL))
    assert set(measured.metric) == set(kinds.METRICS)
    assert set(measured.kind) == {*kinds.KINDS} - {kinds.JOINT, kinds.DEFENDED}
    found = {section.title: section for section in treatments.sections(measured)}
    assert set(found) == {"SmallCNN on digits", "ResNet_18 (width 0.25) on digits"}
    whole = found["SmallCNN on digits"].float_row
    figures = ("clean", "robust", "certified", "bits", "macs", "milliseconds")
    assert all(whole[metric] == whole[metric] for metric in figures)
    assert all(whole[f"{metric}_low"] <= whole[metric] <= whole[f"{metric}_high"] for metric in figures[:3])


def test_what_a_run_of_the_graph_leaves(graph):
    folder = graph / "outputs/01_train/tiny-SmallCNN-1.0"
    made = {path.name for path in folder.iterdir()}
    assert {"params.yaml", "run.json", "rows.parquet", "history.parquet", "checkpoint.pt"} <= made
    assert {"last.pt", "notebook.ipynb", "report.html"} <= made
    assert "unfinished" not in made
    assert pandas.read_parquet(folder / "history.parquet").loss.notna().all()


def test_the_figures_of_generated_images_are_named_in_words(graph):
    report = (graph / "outputs" / RUNS["04_generator"] / "report.html").read_text(encoding="utf-8")
    assert ">BatchNorm distance</th>" in report
    assert "batchnorm_distance</th>" not in report


def test_the_graph_runs_once_and_then_nothing(graph):
    again = command(snakemake(graph), outputs=graph / "outputs")
    assert "Nothing to be done" in again.stderr, again.stderr[-2000:]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(notebook, preset) -> for each of its runs the files that it waits for."""
    outputs = tmp_path_factory.mktemp("planned") / "outputs"

    @functools.cache
    def inputs(notebook: str, preset: str, params: str = "params") -> list[list[str]]:
        plan = [Path(sys.executable).with_name("snakemake"), "-n", "--nolock", "--config"]
        done = command([*plan, f"preset={preset}", f"params={params}"], outputs=outputs)
        begin = f"    input: notebooks/{notebook}.ipynb, "
        found = [line for line in done.stdout.splitlines() if line.startswith(begin)]
        return [
            line.removeprefix(begin).replace(f"{outputs}/", "").split(", ") for line in found
        ] or done.stdout + done.stderr

    return inputs


def test_a_fit_waits_for_the_runs_whose_rows_it_reads(planned):
    found = planned("03_fit", "digits_full")
    notebooks = sorted(sorted({path.split("/")[0] for path in paths}) for paths in found)
    assert notebooks == [["02_quantize"], ["04_generator"]]
    assert planned("03_fit", "digits") == [["01_train/digits-natural-0/checkpoint.pt"]], "the curves come from a table"


def test_an_attack_waits_for_its_network_and_four_others(planned, tmp_path):
    """Not for every training, or hundreds of them would cost more to plan than to run."""
    (tmp_path / "six").mkdir()
    workflow = {
        "01_train": [{"seed": [*range(6)]}],
        "05_robust": [{"norm": ["Linf"]}, {"of": {"seed": 0}, "norm": ["L2"], "study": [["six-[45]"]]}],
    }
    for name, values in {"workflow": workflow, "01_train": {}, "05_robust": {}}.items():
        (tmp_path / f"six/{name}.yaml").write_text(yaml.safe_dump(values))
    found = planned("05_robust", "six", str(tmp_path))
    seeds = sorted("".join(path.removeprefix("01_train/six-")[0] for path in paths) for paths in found)
    assert seeds == ["01234", "0123445", "10234", "20134", "30124", "40123", "50123"]


@pytest.mark.parametrize(
    ("workflow", "message"),
    [
        ({"03_fit": [{"feature": ["a"]}, {"family": ["a"]}]}, "expected one folder per run, got .*/03_fit/wrong-a for"),
        ({"03_fit": [{"feature": "a"}]}, "feature: expected a list of values, got 'a'"),
        (
            {"01_train": [{"seed": [0]}], "06_prune": [{"of": {"seed": 1}}]},
            "expected runs of 01_train with {'seed': 1}",
        ),
    ],
)
def test_what_a_preset_may_not_say(planned, tmp_path, workflow, message):
    (tmp_path / "wrong").mkdir()
    for name, values in {"workflow": workflow, "01_train": {}, "03_fit": {}, "06_prune": {}}.items():
        (tmp_path / f"wrong/{name}.yaml").write_text(yaml.safe_dump(values))
    assert re.search(message, planned("03_fit", "wrong", str(tmp_path)))


def test_values_and_paths_of_any_characters(tmp_path):
    """Nothing in them is read by a shell or taken for a wildcard, and no value is cut."""
    folder, strange = tmp_path / "a b ü", "{run} $(touch x) `touch x` '\""
    (folder / "tiny").mkdir(parents=True)
    images = images_of_two_classes(folder / strange / ("long" * 20))
    workflow = {"threads": 1, "01_train": [{"dataset": [f"imagefolder:{images}"]}]}
    shared = {"model": "SmallCNN", "epochs": 1, "precision": "float32"}
    for name, values in {"workflow": workflow, "01_train": shared}.items():
        (folder / f"tiny/{name}.yaml").write_text(yaml.safe_dump(values))
    done = command(snakemake(folder), outputs=folder / "outputs")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = workbook.collect("01_train", folder / "outputs")
    assert rows.dataset.tolist() == [f"imagefolder:{images}"]
    assert not (ROOT / "x").exists()


def images_of_two_classes(folder: Path) -> Path:
    """Forty pictures of noise."""
    for part, kind in itertools.product(("train", "test"), ("light", "dark")):
        (folder / part / kind).mkdir(parents=True)
        for number in range(10):
            pixels = numpy.random.default_rng(number).integers(0, 128, (16, 16), dtype=numpy.uint8)
            Image.fromarray(pixels + numpy.uint8(127 * (kind == "light"))).save(folder / part / kind / f"{number}.png")
    return folder


@pytest.mark.parametrize("notebook", STATES)
def test_killed_and_run_again(graph, notebook, tmp_path):
    """`kill -9` amid a run, then nbval: all cells pass, and the results are those of the run in the graph."""
    outputs = copied(graph / "outputs", tmp_path / "outputs")
    folder = outputs / RUNS[notebook]
    values = (folder / "params.yaml").read_text().replace(str(graph), str(tmp_path))
    shutil.rmtree(folder)
    prepared = prepare(notebook, tmp_path / f"{notebook}.ipynb", yaml.safe_load(values))
    line = [*NBVAL, "--rootdir", str(tmp_path), str(prepared)]
    kill_amid(line, outputs, folder / "unfinished", state=STATES[notebook])
    assert not (folder / "rows.parquet").exists()
    again = command(line, outputs=outputs)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
    found = same_results.differences(graph / "outputs", outputs)
    assert not [fault for fault in found if RUNS[notebook] in fault and not fault.endswith(MAY_DIFFER)]


def kill_amid(line: list[str], outputs: Path, unfinished: Path, *, state: str) -> None:
    """Start a run, and kill it, kernel first, as soon as a file of this pattern is kept to go on from."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, env=environment(outputs), cwd=ROOT, **quiet)
    deadline = time.monotonic() + 300
    while not any(unfinished.rglob(state)):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (kernel,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for victim in (int(kernel), process.pid):
        os.kill(victim, signal.SIGKILL)
    process.wait()


def test_nbval_compares(tmp_path):
    """A cell that is tagged as ours are, and prints something else than is stored, fails."""
    tags = {"tags": ["nbval-check-output", "keep_output"]}
    for stored, code in (("summary\n", 0), ("another summary\n", 1)):
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
        cell = nbformat.v4.new_code_cell("print('summary')", metadata=tags, outputs=outputs, execution_count=1)
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
        nbformat.write(notebook, tmp_path / "compared.ipynb")
        done = command([*NBVAL, "--rootdir", tmp_path, tmp_path / "compared.ipynb"], outputs=tmp_path)
        assert done.returncode == code, done.stdout
