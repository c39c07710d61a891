"""The graph of notebook runs: train -> quantize -> fit; train -> generator, robust, prune.

    snakemake --cores 2                                     on this machine, preset digits
    snakemake --cores 2 --config preset=cifar10_quick       another folder of params/
    snakemake --workflow-profile params/slurm --config preset=cifar10      on a cluster

params/PRESET/workflow.yaml lists the runs of every notebook, and the ``threads`` of one run (by default 2).
params/PRESET/NN_name.yaml holds the values that all runs of a notebook share. A run is made again when its
parameters, its notebook's code or rqlib have changed; saving a notebook changes none of these. After a failure or
a kill only the interrupted run is made again, and it goes on from its last epoch.
"""

import itertools
import os
import shlex
import sys
from pathlib import Path

import yaml

from rqlib.core import plain_yaml, provenance

PRESET = config.get("preset", "digits")
PARAMS = Path(config.get("params", "params")) / PRESET
OUTPUTS = os.environ.get("RQLIB_OUTPUTS", "outputs")
WORKFLOW = plain_yaml.load((PARAMS / "workflow.yaml").read_text())
THREADS = WORKFLOW.get("threads", 2)


def combinations(groups):
    """Every combination of each group's lists, as dicts."""
    for group in groups:
        for values in itertools.product(*group.values()):
            yield dict(zip(group, values))


def folder_of(*parts):
    """Name of a run's folder; lists are written with plus signs, paths with underscores."""
    words = ("+".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts)
    return "-".join(words).replace("/", "_")


def runs(notebook):
    """Folder of a run -> the parameters that set it apart, for every run of a notebook in this preset."""
    found = combinations(WORKFLOW.get(notebook, []))
    return {f"{OUTPUTS}/{notebook}/{folder_of(PRESET, *values.values())}": values for values in found}


def shared_values(notebook):
    """The values that all runs of a notebook share in this preset."""
    return plain_yaml.load((PARAMS / f"{notebook}.yaml").read_text()) or {}


def after(notebook):
    """As `runs`, each on the network of each run of 01_train that has the values of the group's ``of``.

    The parameters in the group's list ``same`` have the values of that run.
    """
    return {
        f"{OUTPUTS}/{notebook}/{folder_of(Path(folder).name, *values.values())}":
            {**values, **{name: found[name] for name in group.get("same", [])},
             **network_of(folder, {**shared_values("01_train"), **found})}
        for group in WORKFLOW.get(notebook, [])
        for folder, found in RUNS["01_train"].items() if group.get("of", {}).items() <= found.items()
        for values in combinations([{name: values for name, values in group.items() if name not in ("of", "same")}])
    }


def network_of(folder, values):
    """The parameters that open the network of a run of 01_train; a module of the user's own is imported by its name."""
    name, checkpoint = values.get("model", ""), f"{folder}/checkpoint.pt"
    if ":" in name and not name.startswith("torchvision:"):
        return {"network": name, "weights": checkpoint}
    return {"network": checkpoint}


RUNS = {notebook: runs(notebook) for notebook in ("01_train", "03_fit")}
RUNS |= {
    notebook: after(notebook)
    for notebook in ("02_quantize", "04_generator", "05_robust", "06_prune")
}


def tables(notebook):
    """What every run of a notebook leaves when it has finished."""
    return [f"{folder}/rows.parquet" for folder in RUNS[notebook]]


# What a run waits for, given its parameters.


def nothing(values):
    return []


def its_checkpoint(values):
    return values.get("weights", values["network"])


def all_trainings(values):
    """Images are transferred between the networks."""
    return tables("01_train")


def the_rows_it_fits(values):
    return tables({**shared_values("03_fit"), **values}.get("source", "02_quantize"))


# Notebook -> (what a run waits for, what it leaves beside its rows, what it needs).
NOTEBOOKS = {
    "01_train": (nothing, ["checkpoint.pt"], {"mem_mb": 8000, "runtime": 600, "gpu": 1}),
    "02_quantize": (its_checkpoint, [], {"mem_mb": 8000, "runtime": 240, "gpu": 1}),
    "03_fit": (the_rows_it_fits, [], {"mem_mb": 4000, "runtime": 60}),
    "04_generator": (its_checkpoint, [], {"mem_mb": 8000, "runtime": 600, "gpu": 1}),
    "05_robust": (all_trainings, [], {"mem_mb": 8000, "runtime": 240, "gpu": 1}),
    "06_prune": (its_checkpoint, [], {"mem_mb": 8000, "runtime": 1440, "gpu": 1}),
}


def waits(notebook, waits_for):
    """Input of a rule: what the run of its wildcard waits for."""
    return lambda wildcards: waits_for(RUNS[notebook][f"{OUTPUTS}/{notebook}/{wildcards.run}"])


def command(notebook):
    """Parameter of a rule: the shell command of the run of its wildcard."""
    return lambda wildcards: execute(notebook, f"{OUTPUTS}/{notebook}/{wildcards.run}")


def execute(notebook, folder):
    """The shell command of one run."""
    settings = {**shared_values(notebook), **RUNS[notebook][folder], "run_folder": folder}
    written = " ".join("-p " + shlex.quote(f"{name}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
                       for name, value in settings.items())
    return (f"{sys.executable} -m rqlib.workbook.run notebooks/{notebook}.ipynb {folder}/notebook.ipynb "
            f"--report {folder}/report.html {written}")


rule all:
    input: [tables(notebook) for notebook in NOTEBOOKS]


for notebook, (waits_for, leaves, needs) in NOTEBOOKS.items():
    rule:
        name: notebook[3:]
        input: ancient(f"notebooks/{notebook}.ipynb"), waits(notebook, waits_for)
        output: [f"{OUTPUTS}/{notebook}/{{run}}/{file}" for file in ("rows.parquet", *leaves)]
        log: f"{OUTPUTS}/{notebook}/{{run}}/notebook.ipynb"
        params: code=provenance.fingerprint(f"notebooks/{notebook}.ipynb"), command=command(notebook)
        threads: THREADS
        resources: **needs
        shell: "{params.command}"
