import pandas
import pytest

from rqlib.prediction import features, titles
from tests import published


def two(**differ) -> pandas.DataFrame:
    """Two runs of one model, that differ in these columns."""
    one = published.made_up(1)
    return pandas.concat(
        [one.assign(**{name: pair[at] for name, pair in differ.items()}) for at in (0, 1)], ignore_index=True
    )


@pytest.mark.parametrize(
    ("differ", "expected"),
    [
        ({"seed": (0, 1), "run": ("a", "b")}, ["net0, seed 0", "net0, seed 1"]),
        ({"width": (0.25, 1.0), "run": ("a", "b")}, ["net0, width 0.25", "net0, width 1"]),
        ({"checkpoint": ("x.pt", "y.pt"), "run": ("a", "b")}, ["net0, checkpoint x.pt", "net0, checkpoint y.pt"]),
        ({"dataset": ("digits", "imagefolder:data/cifar.zip"), "run": ("a", "b")}, ["net0, digits", "net0, cifar.zip"]),
        (
            {"dataset": ("imagefolder:a/photos", "imagefolder:b/photos"), "run": ("a", "b")},
            ["net0, dataset imagefolder:a/photos", "net0, dataset imagefolder:b/photos"],
        ),
        ({"granularity": ("tensor", "channel"), "run": ("a", "b")}, ["net0, tensor", "net0, channel"]),
        ({"seed": (None, 1), "run": ("a", "b")}, ["net0, no seed", "net0, seed 1"]),
        ({"run": ("a", "b")}, ["net0, run a", "net0, run b"]),
        ({"objective": ("natural", "adversarial"), "run": ("a", "b")}, ["net0, natural", "net0, adversarial"]),
    ],
)
def test_two_networks_of_one_model_are_told_apart_by_what_differs(differ, expected):
    frame = two(**differ)
    assert titles.titles(frame).unique().tolist() == expected
    assert features.table(frame).title.unique().tolist() == expected


def test_a_model_that_is_there_once_keeps_its_name():
    assert titles.titles(published.made_up(3)).unique().tolist() == ["net0", "net1", "net2"]


def test_without_runs_names_and_setting_tell_networks_apart():
    frame = two(granularity=("tensor", "channel")).drop(columns="run")
    assert features.overview(features.table(frame)).index.tolist() == ["net0, tensor", "net0, channel"]
    assert features.overview(features.table(frame)).rows.tolist() == [12, 12]
    with pytest.raises(ValueError, match="expected one row per network and format, got 12 more than once"):
        features.table(frame.drop(columns="granularity"))


def test_the_objective_is_always_named_and_makes_another_network():
    trained = {"objective": ("natural", "adversarial"), "run": ("a", "b")}
    frame = features.table(two(**trained))
    assert frame.network_name.unique().tolist() == ["net0, natural", "net0, adversarial"]
    assert (
        features.table(frame[frame.objective == "natural"].drop(columns=["title", "network_name"]))
        .title.eq("net0, natural")
        .all()
    )


def test_one_network_that_was_measured_twice_is_one_network():
    frame = features.table(two(test_images=(100, 200), run=("a", "b"), objective=("natural", "natural")))
    assert frame.title.nunique() == 2
    assert frame.network_name.unique().tolist() == ["net0, natural"]


def test_families_are_told_by_the_start_of_a_name():
    names = {
        **dict.fromkeys(["VGG_16", "VGG_19"], "vgg"),
        **dict.fromkeys(["AlexNet", "AlexNet_BN"], "alexnet"),
        **dict.fromkeys(["ResNet_18", "torchvision:resnet50"], "resnet"),
        **dict.fromkeys(["MobileNetV2", "torchvision:mobilenet_v3_small"], "mobilenet"),
        "Inception_BN": "inception",
        "torchvision:densenet121": "densenet",
        "mine.networks:tiny": "tiny",
    }
    frame = pandas.DataFrame({"model": [*names]})
    assert titles.families(frame).tolist() == [*names.values()]
    assert features.table(published.made_up(2)).network_family.unique().tolist() == ["net"]
