"""The graph of notebook runs: train -> quantize -> fit; train -> generator, robust, prune.

    snakemake --cores 2                                     on this machine, preset digits
    snakemake --cores 2 --config preset=cifar10_quick       another folder of params/
    snakemake --workflow-profile params/slurm --config preset=cifar10      on a cluster

params/PRESET/workflow.yaml lists the runs of every notebook, params/PRESET/NN_name.yaml the values they
share. A run is made again when its parameters, its notebook's code or rqlib have changed (saving a
notebook changes none of these); a failed or killed one alone, going on from its last epoch.
"""

import itertools
import os
import shlex
import sys
from pathlib import Path

import yaml

from rqlib import provenance

PRESET = config.get("preset", "digits")
PARAMS = Path(config.get("params", "params")) / PRESET
OUTPUTS = os.environ.get("RQLIB_OUTPUTS", "outputs")
WORKFLOW = yaml.safe_load((PARAMS / "workflow.yaml").read_text())


def combinations(groups):
    """Every combination of each group's lists, as dicts."""
    for group in groups:
        for values in itertools.product(*group.values()):
            yield dict(zip(group, values))


def runs(notebook):
    """Folder of a run -> the parameters that set it apart, for every run of a notebook in this preset."""
    named = combinations(WORKFLOW.get(notebook, []))
    return {f"{OUTPUTS}/{notebook}/{'-'.join([PRESET, *map(str, values.values())])}": values for values in named}


TRAIN = runs("01_train")


def tables(folders):
    """What a finished run leaves, for each folder."""
    return [f"{folder}/rows.parquet" for folder in folders]


def shared_values(notebook):
    """The values that all runs of a notebook share in this preset."""
    return yaml.safe_load((PARAMS / f"{notebook}.yaml").read_text()) or {}


def execute(notebook, folder, runs):
    """The shell command of one run."""
    settings = {**shared_values(notebook), **runs[folder], "run_folder": folder}
    written = " ".join("-p " + shlex.quote(f"{name}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
                       for name, value in settings.items())
    return (f"{sys.executable} -m rqlib.run notebooks/{notebook}.ipynb {folder}/notebook.ipynb "
            f"--report {folder}/report.html {written}")


rule all:
    input: tables(TRAIN)


rule train:
    input: ancient("notebooks/01_train.ipynb")
    output: f"{OUTPUTS}/01_train/{{run}}/rows.parquet", f"{OUTPUTS}/01_train/{{run}}/checkpoint.pt"
    log: f"{OUTPUTS}/01_train/{{run}}/notebook.ipynb"
    params:
        code=provenance.fingerprint("notebooks/01_train.ipynb"),
        command=lambda wildcards: execute("01_train", f"{OUTPUTS}/01_train/{wildcards.run}", TRAIN),
    threads: 2
    resources: mem_mb=8000, runtime=600, gpu=1
    shell: "{params.command}"
