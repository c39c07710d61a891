"""The graph of notebook runs: train -> quantize -> fit; train -> generator, robust, prune.

    snakemake --cores 2                                     on this machine, preset digits
    snakemake --cores 2 --config preset=cifar10_quick       another folder of params/
    snakemake --workflow-profile params/slurm --config preset=cifar10      on a cluster

params/PRESET/workflow.yaml lists the runs of every notebook (and the ``threads`` of a run, where not two),
params/PRESET/NN_name.yaml the values they share. A run is made again when its parameters, its notebook's code
or rqlib have changed (saving a notebook changes none of these); a failed or killed one alone, going on from its
last epoch.
"""

import itertools
import os
import shlex
import sys
from pathlib import Path

import yaml

from rqlib.workbook import provenance

PRESET = config.get("preset", "digits")
PARAMS = Path(config.get("params", "params")) / PRESET
OUTPUTS = os.environ.get("RQLIB_OUTPUTS", "outputs")
WORKFLOW = yaml.safe_load((PARAMS / "workflow.yaml").read_text())
THREADS = WORKFLOW.get("threads", 2)


def combinations(groups):
    """Every combination of each group's lists, as dicts."""
    for group in groups:
        for values in itertools.product(*group.values()):
            yield dict(zip(group, values))


def folder_of(*parts):
    """Name of a run's folder; lists are written with plus signs."""
    return "-".join("+".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts)


def runs(notebook):
    """Folder of a run -> the parameters that set it apart, for every run of a notebook in this preset."""
    named = combinations(WORKFLOW.get(notebook, []))
    return {f"{OUTPUTS}/{notebook}/{folder_of(PRESET, *values.values())}": values for values in named}


def after(notebook, earlier):
    """As `runs`, each on the checkpoint of each run of an earlier notebook that has the values of the group's ``of``."""
    return {
        f"{OUTPUTS}/{notebook}/{folder_of(Path(folder).name, *values.values())}":
            {**values, "checkpoint": f"{folder}/checkpoint.pt"}
        for group in WORKFLOW.get(notebook, [])
        for folder, found in earlier.items() if group.get("of", {}).items() <= found.items()
        for values in combinations([{name: values for name, values in group.items() if name != "of"}])
    }


TRAIN = runs("01_train")
QUANTIZE = after("02_quantize", TRAIN)
FIT = runs("03_fit")
GENERATOR = after("04_generator", TRAIN)
ROBUST = after("05_robust", TRAIN)
PRUNE = after("06_prune", TRAIN)


def fitted(run):
    """The runs whose rows a run of 03_fit reads."""
    source = {**shared_values("03_fit"), **FIT[f"{OUTPUTS}/03_fit/{run}"]}.get("source", "02_quantize")
    return GENERATOR if source == "04_generator" else QUANTIZE


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
    return (f"{sys.executable} -m rqlib.workbook.run notebooks/{notebook}.ipynb {folder}/notebook.ipynb "
            f"--report {folder}/report.html {written}")


def command(notebook, runs):
    """The command of a rule's run, by its wildcard."""
    return lambda wildcards: execute(notebook, f"{OUTPUTS}/{notebook}/{wildcards.run}", runs)


rule all:
    input: tables(TRAIN), tables(QUANTIZE), tables(FIT), tables(GENERATOR), tables(ROBUST), tables(PRUNE)


rule train:
    input: ancient("notebooks/01_train.ipynb")
    output: f"{OUTPUTS}/01_train/{{run}}/rows.parquet", f"{OUTPUTS}/01_train/{{run}}/checkpoint.pt"
    log: f"{OUTPUTS}/01_train/{{run}}/notebook.ipynb"
    params: code=provenance.fingerprint("notebooks/01_train.ipynb"), command=command("01_train", TRAIN)
    threads: THREADS
    resources: mem_mb=8000, runtime=600, gpu=1
    shell: "{params.command}"


rule quantize:
    input: ancient("notebooks/02_quantize.ipynb"), lambda wildcards: QUANTIZE[f"{OUTPUTS}/02_quantize/{wildcards.run}"]["checkpoint"]
    output: f"{OUTPUTS}/02_quantize/{{run}}/rows.parquet"
    log: f"{OUTPUTS}/02_quantize/{{run}}/notebook.ipynb"
    params: code=provenance.fingerprint("notebooks/02_quantize.ipynb"), command=command("02_quantize", QUANTIZE)
    threads: THREADS
    resources: mem_mb=8000, runtime=240, gpu=1
    shell: "{params.command}"


rule fit:
    input: ancient("notebooks/03_fit.ipynb"), lambda wildcards: tables(fitted(wildcards.run))
    output: f"{OUTPUTS}/03_fit/{{run}}/rows.parquet"
    log: f"{OUTPUTS}/03_fit/{{run}}/notebook.ipynb"
    params: code=provenance.fingerprint("notebooks/03_fit.ipynb"), command=command("03_fit", FIT)
    threads: THREADS
    resources: mem_mb=4000, runtime=60
    shell: "{params.command}"


rule generator:
    input: ancient("notebooks/04_generator.ipynb"), lambda wildcards: GENERATOR[f"{OUTPUTS}/04_generator/{wildcards.run}"]["checkpoint"]
    output: f"{OUTPUTS}/04_generator/{{run}}/rows.parquet"
    log: f"{OUTPUTS}/04_generator/{{run}}/notebook.ipynb"
    params: code=provenance.fingerprint("notebooks/04_generator.ipynb"), command=command("04_generator", GENERATOR)
    threads: THREADS
    resources: mem_mb=8000, runtime=600, gpu=1
    shell: "{params.command}"


rule robust:  # after all trainings: images are transferred between the networks
    input: ancient("notebooks/05_robust.ipynb"), tables(TRAIN)
    output: f"{OUTPUTS}/05_robust/{{run}}/rows.parquet"
    log: f"{OUTPUTS}/05_robust/{{run}}/notebook.ipynb"
    params: code=provenance.fingerprint("notebooks/05_robust.ipynb"), command=command("05_robust", ROBUST)
    threads: THREADS
    resources: mem_mb=8000, runtime=240, gpu=1
    shell: "{params.command}"


rule prune:
    input: ancient("notebooks/06_prune.ipynb"), lambda wildcards: PRUNE[f"{OUTPUTS}/06_prune/{wildcards.run}"]["checkpoint"]
    output: f"{OUTPUTS}/06_prune/{{run}}/rows.parquet"
    log: f"{OUTPUTS}/06_prune/{{run}}/notebook.ipynb"
    params: code=provenance.fingerprint("notebooks/06_prune.ipynb"), command=command("06_prune", PRUNE)
    threads: THREADS
    resources: mem_mb=8000, runtime=1440, gpu=1
    shell: "{params.command}"
