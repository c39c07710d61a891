"""The runs of a preset: combinations, names of folders, and what is refused."""

import pytest

from rqlib.core import presets


def test_every_combination_in_order():
    found = list(presets.combinations({"model": ["A", "B"], "seed": [0, 1]}))
    assert found == [{"model": model, "seed": seed} for model in "AB" for seed in (0, 1)]
    assert list(presets.combinations({})) == [{}]


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("digits", "SmallCNN", 1.0, 0), "digits-SmallCNN-1.0-0"),
        (("p", ["hydra", "lwm"], []), "p-hydra+lwm-"),
        (("p", "torchvision:resnet18", "outputs/networks/a.pt"), "p-torchvision:resnet18-outputs_networks_a.pt"),
        (("p", ["digits-*", "0..255"]), "p-digits-*+0..255"),
        (("p", "$(touch x)", "{run}", "a b", "ü", "`'\"\\", "%j", "a=b,c"), "p-__touch_x_-_run_-a_b-ü-____-_j-a_b_c"),
    ],
)
def test_names_of_folders_hold_nothing_that_a_shell_or_snakemake_reads(parts, name):
    assert presets.folder_name(*parts) == name


def test_long_names_are_cut_and_stay_apart():
    formats = [f"FLOAT_{number}_E4" for number in range(43)]
    one, two = presets.folder_name("p", formats), presets.folder_name("p", [*formats, "INT_8"])
    assert one != two
    assert max(len(one), len(two)) == presets.LONGEST_NAME


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: presets.by_folder([("a", {"seed": 0, "bits": 4}), ("a", {"seed": 0, "bits": 8})]),
            r"expected one folder per run, got a for a run with \{'bits': 4\} and for one with \{'bits': 8\}; list a",
        ),
        (
            lambda: list(presets.combinations({"seed": 0})),
            r"seed: expected a list of values, got 0; write seed: \[0\]",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_run_that_is_listed_twice_is_made_once():
    assert presets.by_folder([("a", {"seed": 0}), ("b", {}), ("a", {"seed": 0})]) == {"a": {"seed": 0}, "b": {}}
