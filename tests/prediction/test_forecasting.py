import re

import pandas
import pytest

from rqlib import prediction
from rqlib.prediction import fits, forecasting
from rqlib.prediction.forecasting import Predictor
from tests import published

ALONE = Predictor(("js_macs_normalized",), "isotonic", "alone")
TOGETHER = Predictor(("js_params_normalized", "js_macs_normalized"), "boosting", "together")


def split():
    table = prediction.table(published.made_up())
    return table[table.model != "net3"], table[table.model == "net3"]


def test_one_predictor_is_its_fit_and_several_give_their_mean():
    known, new = split()
    both = forecasting.fit(known, [ALONE, TOGETHER])
    each = [forecasting.fit(known, [one]) for one in (ALONE, TOGETHER)]
    direct = fits.fit(known[["js_macs_normalized"]], known.accuracy_loss, "isotonic", groups=known.model)
    pandas.testing.assert_frame_equal(each[0].predict(new), direct.predict(new))
    assert both.features == ("js_macs_normalized", "js_params_normalized")
    mean = sum(fit.predict(new).predicted for fit in each) / 2
    assert both.predict(new).predicted.to_numpy() == pytest.approx(mean.to_numpy())
    assert both.r2 == pytest.approx(fits.scores(known.accuracy_loss, both.predict(known).predicted)["r2"])
    assert both.left_out()[1] == pytest.approx(sum(fit.left_out()[1] for fit in each) / 2)
    assert both.equation.startswith("loss = mean of: js_macs_normalized: loss = ")


def test_predict_has_a_row_for_each_format_the_smallest_first():
    known, new = split()
    found = forecasting.predict(new, forecasting.fit(known, [ALONE]))
    assert sorted(found.format) == sorted(new.format)
    assert found.bits.is_monotonic_increasing
    assert (found.storage * 32 == found.bits).all()
    assert (found.storage_bits == 1000 * found.bits).all()
    assert found.upper.max() <= 1
    assert (found.set_index("format").accuracy_loss[new.format].to_numpy() == new.accuracy_loss.to_numpy()).all()
    assert (found.predicted - found.accuracy_loss).abs().max() < 0.2
    blind = forecasting.predict(new.drop(columns=["accuracy_loss", "coded_bits"]), forecasting.fit(known, [ALONE]))
    assert not {"accuracy_loss", "storage_bits"} & set(blind)
    assert blind.predicted.tolist() == found.predicted.tolist()


def test_outside_the_interval_is_the_widest_error_times_the_distance_and_inside_nothing_changes():
    known, new = split()
    fit = forecasting.fit(known.assign(depthwise_share=0.0), [TOGETHER])
    inside = forecasting.predict(new.assign(depthwise_share=0.0), fit)
    unknown = forecasting.predict(new, forecasting.fit(known, [TOGETHER]))
    assert inside.distance.eq(0).all()
    assert inside.outside.eq("").all()
    pandas.testing.assert_frame_equal(inside, unknown, check_exact=True)
    before = inside.upper - inside.lower
    for share in (0.1, 0.5, 1.0):
        found = forecasting.predict(new.assign(depthwise_share=share), fit)
        assert found.predicted.equals(inside.predicted)
        assert found.outside.eq("depthwise_share").all()
        assert found.distance.to_numpy() == pytest.approx(share / 0.5 - 0.05)
        assert (found.upper - found.lower > before).all()
        before = found.upper - found.lower


def test_only_the_formats_outside_are_widened():
    known, new = split()
    fit = forecasting.fit(known, [TOGETHER])
    strange = new.assign(js_macs_normalized=new.js_macs_normalized.where(new.format != "INT_2", 1e3))
    inside, found = (forecasting.predict(rows, fit).set_index("format") for rows in (new, strange))
    assert found.outside[found.outside != ""].to_dict() == {"INT_2": "js_macs_normalized"}
    assert found.drop("INT_2").equals(inside.drop("INT_2").loc[found.drop("INT_2").index])
    assert found.upper["INT_2"] - found.lower["INT_2"] > inside.upper["INT_2"] - inside.lower["INT_2"]


def forecast():
    return pandas.DataFrame({
        "format": ["INT_3", "INT_4", "POT_5", "INT_5", "INT_8"], "bits": [3, 4, 5, 5, 8],
        "predicted": [0.5, 0.04, 0.02, 0.01, 0.0], "lower": [0.4, 0.0, 0.0, 0.0, 0.0],
        "upper": [0.6, 0.09, 0.03, 0.03, 0.004], "outside": ["", "", "", "js_macs", ""],
    })  # fmt: skip


def test_recommendation_by_hand():
    found = forecasting.recommend(forecast(), 0.05)
    assert found.format.to_dict() == {"upper end": "INT_5", "prediction": "INT_4"}
    assert found.met.all()
    assert forecasting.recommend(forecast(), 0.02).format.to_dict() == {"upper end": "INT_8", "prediction": "INT_5"}


def test_where_no_format_is_good_enough_the_nearest_is_shown_and_nothing_is_missing():
    found = forecasting.recommend(forecast().assign(predicted=forecast().predicted + 0.1), 0.002)
    assert found.format.to_dict() == {"upper end": "INT_8", "prediction": "INT_8"}
    assert not found.met.any()
    assert forecasting.recommend(forecast()[:1], 0.0).notna().all(axis=None)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda known, fit: forecasting.predict(known.drop(columns="js_macs_normalized"), fit),
            "none named js_macs_normalized; unknown column",
        ),
        (lambda known, fit: forecasting.fit(known.drop(columns="model"), [ALONE]), "got none named model"),
        (lambda known, fit: forecasting.recommend(forecast(), 2), "a fraction in [0, 1], got 2; divide percent"),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(split()[0], forecasting.fit(split()[0], [ALONE]))
