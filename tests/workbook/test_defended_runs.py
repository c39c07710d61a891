"""The networks of a study are found by patterns of folders, named by their defenses, and opened one at a time."""

import math

import pandas
import pytest
import torch

from rqlib import data, defenses, models, workbook
from rqlib.core.parametrizations import bake
from rqlib.workbook import results
from tests.workbook.runs import start

A = {"objective": "n_fgsm", "epsilon_255": 8.0, "activation": "DTReLU_4", "weight_format": "range_8"}


def trained(folder: str, seeds: list[int], **values) -> list[torch.nn.Module]:
    """A finished run of 01_train with a network for each seed."""
    images = data.load("digits")
    values = {
        "model": "SmallCNN",
        "seed": seeds[0],
        "run_folder": f"{results.outputs_folder()}/01_train/{folder}",
    } | values
    run = start("01_train", **values)
    settings = {name: values[name] for name in ("activation", "weight_format") if name in values}
    made = []
    for seed in seeds:
        network = defenses.defend(models.build("SmallCNN", images.spec, seed=seed), **settings).eval()
        part = "" if seed == seeds[0] else f"seed{seed}"
        options = {"file": f"{part or '.'}/checkpoint.pt", "seed": seed, "changes": {"defended": settings}}
        run.checkpoint(network, "SmallCNN", images.spec, **options)
        run.save(part, history=pandas.DataFrame({"loss": [float(seed)]}))
        made.append(network)
    run.finish()
    return made


def test_every_seed_of_every_matching_run_is_found():
    plain, defended = trained("p-natural", [0, 1]), trained("p-both-8", [0, 3], **A)
    trained("q-other", [0])
    found = workbook.defended(["p-nat*", "p-both-*"], data.load("digits"))
    assert [(one.variant, one.seed) for one in found] == [("Q+A", 0), ("Q+A", 3), ("original", 0), ("original", 1)]
    assert [one.epsilon_255 for one in found[:2]] == [8.0, 8.0]
    assert math.isnan(found[-1].epsilon_255)
    assert [one.history().loss.item() for one in found] == [0.0, 3.0, 0.0, 1.0]
    x = torch.rand(4, *data.load("digits").spec.shape)
    for one, network in zip(found, [*defended, *plain], strict=True):
        torch.testing.assert_close(one.open()(x), bake(network)(x))


def test_no_pattern_is_no_study_and_one_that_matches_nothing_is_an_error():
    trained("p-natural", [0])
    assert workbook.defended([], data.load("digits")) == []
    with pytest.raises(FileNotFoundError, match="study='r-\\*': expected finished runs with such names in .*01_train"):
        workbook.defended(["p-*", "r-*"], data.load("digits"))


def test_a_run_that_two_patterns_match_is_there_once():
    trained("p-natural", [0, 1])
    assert [one.seed for one in workbook.defended(["p-*", "*-natural"], data.load("digits"))] == [0, 1]
