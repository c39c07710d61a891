import re

import numpy
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


def test_what_was_never_seen_is_said():
    known, new = split()
    fit = forecasting.fit(known, [TOGETHER])
    assert forecasting.familiarity(forecasting.predict(new, fit)) == "all 12 formats lie within what the fit has seen"
    strange = new.assign(js_macs_normalized=new.js_macs_normalized.where(new.format != "INT_2", 1e3))
    found = forecasting.predict(strange, fit)
    assert found.outside[found.format == "INT_2"].item() == "js_macs_normalized"
    assert forecasting.familiarity(found) == (
        "1 of 12 formats lie outside what the fit has seen, do not trust their intervals: INT_2 (js_macs_normalized)"
    )


def forecast():
    return pandas.DataFrame({
        "format": ["INT_3", "INT_4", "POT_5", "INT_5", "INT_8"], "bits": [3, 4, 5, 5, 8],
        "predicted": [0.5, 0.04, 0.02, 0.01, 0.0], "lower": [0.4, 0.0, 0.0, 0.0, 0.0],
        "upper": [0.6, 0.09, 0.03, 0.03, 0.004], "outside": ["", "", "", "js_macs", ""],
    })  # fmt: skip


def test_recommendation_by_hand():
    found = forecasting.recommend(forecast(), 0.05)
    assert found.format.to_dict() == {"upper end": "POT_5", "prediction": "INT_4"}
    assert forecasting.recommend(forecast(), 0.02).format.to_dict() == {"upper end": "INT_8", "prediction": "INT_5"}
    assert forecasting.recommend(forecast().assign(upper=numpy.inf), 0.02).format["upper end"] == "none"
    assert forecasting.recommend(forecast()[:1], 0.0).format.tolist() == ["none", "none"]


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
