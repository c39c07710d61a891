"""A format that every measured network holds nearly exactly is not rejected, however wrong the predictors are."""

import pandas
import pytest

from rqlib import prediction
from rqlib.core import files
from rqlib.prediction import conformal, exact_formats, forecasting


def known() -> pandas.DataFrame:
    """Ten networks in three formats: INT_4 moves the logits, INT_8 a little, INT_16 hardly."""
    errors = {"INT_4": 0.3, "INT_8": 5e-4, "INT_16": 1e-6}
    losses = {"INT_4": 0.2, "INT_8": 0.004, "INT_16": 0.0}
    rows = [{"format": name, "logit_error": errors[name], "accuracy_loss": losses[name]} for name in errors]
    return pandas.DataFrame([row | {"model": f"net{model}"} for model in range(10) for row in rows])


def table(distance: float = 0.0) -> pandas.DataFrame:
    ends = {"predicted": 0.02, "lower": -0.07, "upper": 0.11, "distance": distance}
    return pandas.DataFrame([{"format": name, **ends} for name in ("INT_4", "INT_8", "INT_16", "POT_4")])


def test_formats_are_exact_as_far_as_the_logits_of_measured_networks_stayed():
    found = exact_formats.narrowed(table(), known()).set_index("format")
    assert found.upper.to_dict() == {"INT_4": 0.11, "INT_8": 0.004, "INT_16": 0.0, "POT_4": 0.11}
    assert found.predicted.to_dict() == {"INT_4": 0.02, "INT_8": 0.0, "INT_16": 0.0, "POT_4": 0.02}
    assert (found.lower <= found.predicted).all()
    far = exact_formats.narrowed(table(distance=1.0), known()).set_index("format")
    assert far.upper.to_dict() == {"INT_4": 0.11, "INT_8": 0.11, "INT_16": 0.0, "POT_4": 0.11}


def test_where_no_interval_is_known_exact_formats_have_one():
    found = exact_formats.narrowed(table().assign(lower=float("nan"), upper=float("nan")), known())
    assert found.upper.notna().tolist() == [False, True, True, False]


def test_an_interval_that_is_narrower_stays_and_so_does_all_where_logits_are_not_known():
    narrow = table().assign(upper=0.001)
    assert exact_formats.narrowed(narrow, known()).upper[1] == 0.001
    pandas.testing.assert_frame_equal(exact_formats.narrowed(table(), known().drop(columns="logit_error")), table())


def test_on_the_shipped_networks_left_out_the_narrow_intervals_hold_what_they_promise():
    rows = pandas.read_csv(files.project_root() / "outputs/reference/quantize.csv")
    losses, held = prediction.table(prediction.measured_with(rows, prediction.setting(rows))), []
    level = conformal.promised(0.9, losses.network_name.nunique() - 1)
    for name in losses.network_name.unique():
        own = losses.network_name == name
        blank = losses[own][["format", "bits", "accuracy_loss"]].assign(
            predicted=0.5, lower=-1.0, upper=1.0, distance=0.0
        )
        found = exact_formats.narrowed(blank, losses[~own], group="network_name", level=level)
        held.append(found[found.upper < 1])
    held = pandas.concat(held)
    assert {"INT_12", "INT_13", "INT_14", "INT_15", "INT_16"} <= set(held.format)
    assert held.accuracy_loss.between(held.lower, held.upper).mean() >= level
    assert held.upper.max() < 0.02


def test_few_networks_promise_less():
    few = known()[lambda rows: rows.model.isin(["net0", "net1", "net2"])]
    assert exact_formats.narrowed(table(), few, level=0.9).equals(table())
    assert exact_formats.narrowed(table(), few, level=0.75).upper.tolist() == [0.11, 0.004, 0.0, 0.11]


@pytest.mark.parametrize(
    ("upper", "predicted", "words"),
    [
        ([0.5, 0.01], [0.2, 0.0], "INT_8 is the smallest format whose 90% interval stays within a loss of 2.0%"),
        ([0.5, 0.11], [0.2, 0.0], "even the interval of INT_8 reaches to a loss of 11.0%, above 2.0% of the accuracy"),
        ([0.5, 0.11], [0.2, 0.0], "by the prediction alone, INT_8 would do"),
        ([0.5, 0.11], [0.2, 0.1], "nor does any prediction"),
        ([float("nan")] * 2, [0.2, 0.0], "too few networks were measured for an interval"),
    ],
)
def test_a_sentence_says_what_can_be_promised_or_why_nothing_can(upper, predicted, words):
    frame = pandas.DataFrame({"format": ["INT_4", "INT_8"], "bits": [4, 8], "upper": upper, "predicted": predicted})
    assert words in forecasting.verdict(frame, 0.02)
