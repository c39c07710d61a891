"""What the figures say in words follows from them, and from their intervals."""

import pytest
from pandas import DataFrame

from rqlib import measures
from rqlib.workbook.overview import sentences
from rqlib.workbook.overview.kinds import CHANNELS, DEFENDED, FLOAT, FORMAT, JOINT, PRUNED
from rqlib.workbook.overview.networks import Network
from rqlib.workbook.overview.treatments import Section

QUANTIZED, SMALLER, ATTACKED = "If I quantize it", "If I make it smaller", "If it is attacked"
NETWORK = Network("SmallCNN", 1.0, "digits", "natural")


def row(kind: str, treatment: str, *, images: float = 400, **figures: float) -> dict:
    """A row of a section, accuracies with Wilson's intervals."""
    found = {"kind": kind, "treatment": treatment, "report": "", "clean_images": images, **figures}
    for metric in set(figures) & {"clean", "robust", "certified"}:
        found[f"{metric}_low"], found[f"{metric}_high"] = measures.wilson(figures[metric], images)
    return found


def said(*rows: dict, network: Network = NETWORK, unproved: str = "") -> dict[str, str]:
    """The paragraphs about the float network (98%, under attack 5%, 1,000 bits) and these rows."""
    whole = row(FLOAT, "float", clean=0.98, robust=0.05, bits=1000, macs=100)
    return sentences.say(Section(network, network.title, DataFrame([whole, *rows]), ["8/255"], "8/255", unproved))


def test_what_was_not_measured_is_said_to_be_so():
    only = sentences.say(Section(NETWORK, "", DataFrame([row(FLOAT, "float", clean=0.98)]), [], ""))
    assert only == {
        QUANTIZED: "No number format was measured (notebook 02_quantize). "
        "No accuracy was predicted beforehand (notebooks 03_fit and 04_generator).",
        SMALLER: "Nothing was pruned (notebook 06_prune). No channels were removed.",
        ATTACKED: "Nothing was attacked (notebook 05_robust). "
        "Nothing was proved (the parameter certified_images of 05_robust and 06_prune).",
    }


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (0.975, "INT_8 changes nothing measurable: 97.5% beside 98.0% on 400 images, 4.0 times smaller."),
        (
            0.9,
            "INT_8 costs accuracy: 90.0% beside 98.0% on 400 images, 4.0 times smaller. Every format costs accuracy.",
        ),
        (1.0, "INT_8 gains accuracy: 100.0% beside 98.0% on 400 images, 4.0 times smaller."),
    ],
)
def test_int8_by_its_interval(accuracy, words):
    assert said(row(FORMAT, "INT_8", clean=accuracy, bits=250))[QUANTIZED].startswith(words)


def test_formats_the_smallest_that_is_free_and_the_mildest_that_is_not():
    found = said(
        row(FORMAT, "INT_6", clean=0.98, bits=190),
        row(FORMAT, "INT_4", clean=0.97, bits=125),
        row(FORMAT, "INT_3", clean=0.9, bits=95),
        row(FORMAT, "INT_2", clean=0.1, bits=63),
    )[QUANTIZED]
    assert "The smallest that costs nothing measurable is INT_4 (97.0% beside 98.0%, 8.0 times smaller)." in found
    assert "The least measurable loss is 8.0 points, of INT_3 (formats that lose accuracy: 2 of 4)." in found


def test_a_large_loss_that_may_be_chance_is_not_called_none():
    few = {"clean_low": 0.6, "clean_high": 1.0, "robust_low": 0.0, "robust_high": 1.0}
    found = said(row(FORMAT, "INT_4", clean=0.8) | few, row(PRUNED, "lwm, 10%", clean=0.8, robust=0.05) | few)
    assert "Of no format can it be told that it costs nothing: there are too few images or seeds." in found[QUANTIZED]
    assert "Of no smaller network can it be told that it costs nothing" in found[SMALLER]
    mixed = said(row(FORMAT, "INT_8", clean=0.9), row(FORMAT, "INT_4", images=float("nan"), clean=0.5))[QUANTIZED]
    assert "Every format" not in mixed


def test_the_float_network_is_compared_on_the_same_images():
    low, high = measures.wilson(0.9, 100)
    same = {"float_clean": 0.9, "float_clean_low": low, "float_clean_high": high}
    found = said(row(FORMAT, "INT_8", images=100, clean=0.9, bits=250, **same))[QUANTIZED]
    assert "INT_8 changes nothing measurable: 90.0% beside 90.0% on 100 images, 4.0 times smaller." in found


def test_without_intervals_nothing_is_claimed():
    found = said(
        row(FORMAT, "INT_8", images=float("nan"), clean=0.5), row(PRUNED, "lwm", images=float("nan"), clean=0.5)
    )
    assert "INT_8 may cost accuracy: 50.0% beside 98.0%. Of no format can it be told" in found[QUANTIZED]
    assert "Of no smaller network can it be told" in found[SMALLER]


def test_predictions_beside_measurements():
    rows = [row(FORMAT, f"INT_{bits}", clean=0.98, predicted=0.96, predicted_low=low, predicted_high=1.0)
            for bits, low in ((8, 0.9), (9, 0.985))]  # fmt: skip
    assert "off by 2.0 points on average of 2; 1 of 2 intervals held." in said(*rows)[QUANTIZED]
    without = [{name: value for name, value in one.items() if not name.startswith("predicted_")} for one in rows]
    assert "off by 2.0 points on average of 2, and have no intervals." in said(*without)[QUANTIZED]


def test_the_smallest_network_that_loses_neither_accuracy_nor_robustness():
    fragile = row(PRUNED, "lwm, 5%", clean=0.98, robust=0.0, bits=50)
    good = row(JOINT, "ATMC-8, 10 times smaller", clean=0.97, robust=0.6, bits=100)
    large = row(PRUNED, "hydra, 50%", clean=0.98, robust=0.6, bits=500)
    found = said(fragile, good, large)[SMALLER]
    assert "The smallest that loses nothing measurable is ATMC-8, 10 times smaller: " in found
    assert "97.0% beside 98.0%, under attack 60.0% beside 5.0%, 10.0 times smaller." in found
    assert "Networks that lose nothing measurable: 2 of 3." in found
    assert "Every smaller network loses accuracy or robustness; the most accurate is lwm, 5%" in said(fragile)[SMALLER]
    coarse = said(row(PRUNED, "lwm, 1%", clean=0.5))[SMALLER]
    assert "Every smaller network loses accuracy; the most accurate is lwm, 1%: 50.0% beside 98.0%." in coarse


@pytest.mark.parametrize(("accuracy", "words"), [(0.97, "can go"), (0.8, "cannot go without a loss")])
def test_half_of_the_channels(accuracy, words):
    found = said(row(CHANNELS, "half of the channels removed", clean=accuracy, macs=25))[SMALLER]
    assert f"Half of the channels {words}: {accuracy:.1%} beside 98.0%, with 4.0 times fewer operations." in found


def test_what_withstands_the_attack():
    weak, strong = row(FORMAT, "INT_8", clean=0.98, robust=0.04), row(PRUNED, "hydra, 10%", clean=0.98, robust=0.7)
    assert (
        "Nothing here withstands it for more than half of the images; nearest comes the float network (5.0%)."
        in (said(weak)[ATTACKED])
    )
    assert "for more than half of the images, except hydra, 10% (70.0%)." in said(weak, strong)[ATTACKED]
    barely = row(PRUNED, "lwm, 10%", clean=0.98, robust=0.53)
    assert "nearest comes lwm, 10% (53.0%)" in said(barely)[ATTACKED], "the interval reaches below a half"
    many = [row(PRUNED, f"hydra, {kept}%", clean=0.98, robust=0.6 + kept / 100) for kept in (1, 2, 3, 4)]
    assert "withstand it for more than half of the images: 4 of 5, best hydra, 4% (64.0%)." in (said(*many)[ATTACKED])


def test_a_defense_and_a_proof():
    defended = row(DEFENDED, "adversarial at 8/255", clean=0.97, robust=0.7, certified=0.4)
    found = said(defended)[ATTACKED]
    assert (
        "The best defense, adversarial at 8/255, raises this (70.0% beside 5.0%) and costs no clean accuracy that"
        in found
    )
    assert "Proved within 8/255: at best 40.0%, for adversarial at 8/255." in found
    smaller = said(defended, unproved="16/255")[ATTACKED]
    assert "at best 40.0%, for adversarial at 8/255; nothing within 16/255." in smaller
    nothing = said(row(DEFENDED, "adversarial at 8/255", clean=0.97, certified=0.0))[ATTACKED]
    assert "Nothing was proved within 8/255." in nothing
    other = said(defended, network=NETWORK._replace(training="sabr at 8/255"))[ATTACKED]
    assert "The best defense" not in other
