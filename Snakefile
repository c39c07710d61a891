"""The graph of notebook runs: train -> quantize -> fit; train -> generator, robust, prune.

    snakemake --cores 2                                     on this machine, preset digits
    snakemake --cores 2 --config preset=cifar10_quick       another folder of params/
    snakemake --workflow-profile params/slurm --config preset=cifar10      on a cluster

params/PRESET/workflow.yaml lists the runs of every notebook, and the ``threads`` of one run (by default 2).
params/PRESET/NN_name.yaml holds the values that all runs of a notebook share. A run is made again when its
parameters, its notebook's code or rqlib have changed; saving a notebook changes none of these. After a failure or
a kill only the interrupted run is made again, and it goes on from its last epoch. Its parameters lie in its folder as
``params.yaml``, which is what it reads.
"""

import functools
import itertools
import json
import os
import sys
from pathlib import Path

from rqlib.core import plain_yaml, presets, provenance, snakemake_lock

PRESET = config.get("preset", "digits")
PARAMS = Path(config.get("params", "params")) / PRESET
OUTPUTS = os.environ.get("RQLIB_OUTPUTS", "outputs")
WORKFLOW = plain_yaml.load((PARAMS / "workflow.yaml").read_text())
THREADS = WORKFLOW.get("threads", 2)
PYTHON = sys.executable

if set("{}") & set(OUTPUTS):
    raise ValueError(f"RQLIB_OUTPUTS={OUTPUTS!r}: expected a path without braces, which Snakemake reads as wildcards")


def folder_of(notebook, *parts):
    """Folder of a run, named by the values that set it apart."""
    return f"{OUTPUTS}/{notebook}/{presets.folder_name(*parts)}"


def runs(notebook, groups=None):
    """Folder of a run -> the parameters that set it apart, for every run of a notebook in this preset.

    ``groups``: those of the preset, or some of them.
    """
    groups = WORKFLOW.get(notebook, []) if groups is None else groups
    found = (values for group in groups for values in presets.combinations(group))
    return presets.by_folder((folder_of(notebook, PRESET, *values.values()), values) for values in found)


@functools.cache
def shared_values(notebook):
    """The values that all runs of a notebook share in this preset."""
    return plain_yaml.load((PARAMS / f"{notebook}.yaml").read_text()) or {}


def after(notebook, groups=None):
    """As `runs`, each on the network of each run of 01_train that has the values of the group's ``of``.

    The parameters in the group's list ``same`` have the values of that run.
    """
    return presets.by_folder(
        (
            folder_of(notebook, Path(folder).name, *values.values()),
            {**values, **{name: found[name] for name in group.get("same", [])}, **network_of(folder, found)},
        )
        for group in (WORKFLOW.get(notebook, []) if groups is None else groups)
        for folder, found in trained_with(group.get("of", {})).items()
        for values in presets.combinations({name: group[name] for name in group if name not in ("of", "same")})
    )


def trained_with(wanted):
    """The runs of 01_train that have these values."""
    found = {folder: values for folder, values in RUNS["01_train"].items() if wanted.items() <= values.items()}
    if not found:
        raise ValueError(f"{PARAMS}/workflow.yaml: expected runs of 01_train with {wanted}, found none")
    return found


def network_of(folder, values):
    """The parameters that open the network of a run of 01_train; a module of the user's own is imported by its name."""
    name, checkpoint = model_of(values), f"{folder}/checkpoint.pt"
    return {"network": name, "weights": checkpoint} if is_own(name) else {"network": checkpoint}


def model_of(values):
    """Name of the model of a run of 01_train."""
    return {**shared_values("01_train"), **values}.get("model", "")


def is_own(name):
    """Whether a model comes from a module of the user's own."""
    return ":" in name and not name.startswith("torchvision:")


@functools.cache
def settings(notebook, folder):
    """The parameters of a run. A run of 05_robust that names no other networks gets the first ones of this preset."""
    values = {**shared_values(notebook), **RUNS[notebook][folder], "run_folder": folder}
    return {"others": others_than(its_checkpoint(values), values), **values} if notebook == "05_robust" else values


def others_than(checkpoint, values):
    """The checkpoints of the first trainings on the same images, without those from modules of the user's own."""
    first = (path for path in trained_on(values.get("dataset")) if path != checkpoint)
    return list(itertools.islice(first, presets.MOST_OTHERS))


@functools.cache
def trained_on(dataset):
    """The checkpoints of the trainings on these images, in the order of their folders."""
    found = {folder: {**shared_values("01_train"), **values} for folder, values in RUNS["01_train"].items()}
    folders = [folder for folder in sorted(found) if found[folder].get("dataset") == dataset]
    return [f"{folder}/checkpoint.pt" for folder in folders if not is_own(model_of(found[folder]))]


def fits():
    """The runs of 03_fit: on the network of a training where a group has ``of``, else on what was measured."""
    on_networks = [group for group in WORKFLOW.get("03_fit", []) if "of" in group]
    others = [group for group in WORKFLOW.get("03_fit", []) if "of" not in group]
    return after("03_fit", on_networks) | runs("03_fit", others)


RUNS = {"01_train": runs("01_train")}
RUNS |= {notebook: after(notebook) for notebook in ("02_quantize", "04_generator", "05_robust", "06_prune")}
RUNS["03_fit"] = fits()


def tables(notebook):
    """What every run of a notebook leaves when it has finished."""
    return [f"{folder}/rows.parquet" for folder in RUNS[notebook]]


# The files that a run waits for, given its parameters.


def what_it_compares(values):
    """The network of another training, if this preset makes it."""
    compared = Path(values.get("compare", ""))
    return [str(compared)] if str(compared.parent) in RUNS["01_train"] else []


def its_checkpoint(values):
    return values.get("weights", values["network"])


def the_networks_it_names(values):
    """Its own, those that images are transferred from, and those of a study."""
    return [its_checkpoint(values), *values["others"], *studied(tuple(values.get("study", [])))]


@functools.cache
def studied(patterns):
    """The checkpoints of the trainings in this preset whose folders match."""
    return [f"{folder}/checkpoint.pt" for folder in RUNS["01_train"] if any(map(Path(folder).match, patterns))]


def what_it_forecasts(values):
    """The rows that curves are fitted to, if they are not a table, and the checkpoint of the network, if it has one."""
    rows = [] if values.get("table") else tables(values.get("source", "02_quantize"))
    return [*rows, *([its_checkpoint(values)] if "network" in values else [])]


# Notebook -> (what a run waits for, what it leaves beside its rows, what it needs).
NOTEBOOKS = {
    "01_train": (what_it_compares, ["checkpoint.pt"], {"mem_mb": 8000, "runtime": 600, "gpu": 1}),
    "02_quantize": (its_checkpoint, [], {"mem_mb": 8000, "runtime": 240, "gpu": 1}),
    "03_fit": (what_it_forecasts, [], {"mem_mb": 4000, "runtime": 60}),
    "04_generator": (its_checkpoint, [], {"mem_mb": 8000, "runtime": 600, "gpu": 1}),
    "05_robust": (the_networks_it_names, [], {"mem_mb": 8000, "runtime": 240, "gpu": 1}),
    "06_prune": (its_checkpoint, [], {"mem_mb": 8000, "runtime": 1440, "gpu": 1}),
}


def waits(notebook, waits_for):
    """Input of a rule: what the run of its wildcard waits for."""
    return lambda wildcards: waits_for(settings(notebook, f"{OUTPUTS}/{notebook}/{wildcards.run}"))


def values_of(notebook):
    """Parameter of a rule: the parameters of the run of its wildcard as one text, which the shell gets quoted."""
    written = functools.partial(json.dumps, ensure_ascii=False)
    return lambda wildcards: written(settings(notebook, f"{OUTPUTS}/{notebook}/{wildcards.run}"))


onstart:
    snakemake_lock.own()


rule all:
    input: [tables(notebook) for notebook in NOTEBOOKS]


for notebook, (waits_for, leaves, needs) in NOTEBOOKS.items():
    rule:
        name: notebook[3:]
        input: ancient(f"notebooks/{notebook}.ipynb"), waits(notebook, waits_for)
        output: [f"{OUTPUTS}/{notebook}/{{run}}/{file}" for file in ("rows.parquet", *leaves)]
        log: f"{OUTPUTS}/{notebook}/{{run}}/notebook.ipynb"
        params: code=provenance.fingerprint(f"notebooks/{notebook}.ipynb"), values=values_of(notebook)
        threads: THREADS
        resources: **needs
        shell: "{PYTHON:q} -m rqlib.workbook.batch {input[0]:q} {log:q} {params.values:q}"
