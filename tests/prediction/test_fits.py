import re

import numpy
import pandas
import pytest
from pandas import DataFrame
from sklearn import metrics
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from rqlib.prediction import features, fits
from tests import published

PSEUDO = "pseudo_accuracy_loss"


def grouped(groups: int = 5, rows: int = 12) -> DataFrame:
    random = numpy.random.default_rng(0)
    x = random.random(groups * rows)
    y = x**2 + 0.1 * random.random(groups * rows)
    return DataFrame({"x": x, "y": y, "group": numpy.repeat([f"g{index}" for index in range(groups)], rows)})


def left_out(frame: DataFrame, family: str = "isotonic") -> DataFrame:
    """Every row predicted without its group."""
    return fits.cross(frame, ["x"], "y", "group", family).table()


def test_scores_agree_with_scikit_learn():
    frame = grouped()
    fit = fits.fit(frame[["x"]], frame.y, "isotonic")
    predicted = fit.predict(frame[["x"]]).predicted
    assert fit.r2 == pytest.approx(metrics.r2_score(frame.y, predicted))
    assert fit.mae == pytest.approx(metrics.mean_absolute_error(frame.y, predicted))
    assert fit.rmse == pytest.approx(metrics.root_mean_squared_error(frame.y, predicted))
    assert numpy.isnan(fits.scores(numpy.ones(3), numpy.zeros(3))["r2"])


@pytest.mark.parametrize("family", fits.FAMILIES)
def test_every_family_fits_predicts_and_says_what_it_is(family):
    frame = grouped()
    x = frame[["group"]] if family == "lookup" else frame[["x"]]
    fit = fits.fit(x, frame.y, family, groups=frame.group)
    found = fit.predict(x)
    assert (found.index == frame.index).all()
    assert ((found.lower <= found.predicted) & (found.predicted <= found.upper)).all()
    assert fit.equation.startswith("loss = ")
    assert all(numpy.isfinite([*fit.parameters.values()]))


def test_predictions_of_groups_left_out_agree_with_scikit_learn():
    frame = grouped().sample(frac=1, random_state=0)
    found = left_out(frame)
    expected = cross_val_predict(
        IsotonicRegression(out_of_bounds="clip"), frame.x, frame.y, groups=frame.group, cv=LeaveOneGroupOut()
    )
    assert found.predicted.to_numpy() == pytest.approx(expected)
    assert (found.index == frame.index).all()
    assert found.residual.to_numpy() == pytest.approx((frame.y - expected).to_numpy())


def test_a_group_left_out_has_no_say_in_its_prediction_or_interval():
    frame = grouped()
    changed = frame.assign(y=frame.y.where(frame.group != "g2", 1 - frame.y))
    columns = ["predicted", "lower", "upper"]
    before, after = (left_out(rows, "rational_2") for rows in (frame, changed))
    own = frame.group == "g2"
    assert before.loc[own, columns].equals(after.loc[own, columns])
    assert not before.loc[~own, columns].equals(after.loc[~own, columns])


def test_cross_leaves_both_groups_out():
    frame = grouped(3)
    held_out = fits.cross(frame, ["x"], "y", "group", "isotonic")
    only = frame[frame.group == "g2"]
    model = IsotonicRegression(out_of_bounds="clip").fit(only.x, only.y)
    of_g1 = frame.index[frame.group == "g1"]
    assert held_out.cross.loc["g0", of_g1].to_numpy() == pytest.approx(model.predict(frame.x[of_g1]))
    assert held_out.own().to_numpy() == pytest.approx(held_out.table().predicted.to_numpy())


def test_few_groups_have_a_prediction_but_no_interval():
    found = left_out(grouped(2))
    assert found.predicted.notna().all()
    assert found.lower.isna().all()
    alone = grouped(1)
    fit = fits.fit(alone[["x"]], alone.y, "isotonic", groups=alone.group)
    assert fit.r2 > 0.5
    assert numpy.isnan(fits.scores(*fit.left_out())["r2"])
    assert fit.predict(alone[["x"]])[["lower", "upper"]].isna().all(axis=None)


def test_intervals_of_a_fit_come_from_rows_left_out():
    frame = grouped()
    fit = fits.fit(frame[["x"]], frame.y, "isotonic", groups=frame.group)
    truth, predicted = fit.left_out()
    assert truth == pytest.approx(frame.y.to_numpy())
    assert predicted == pytest.approx(left_out(frame).predicted.to_numpy())
    wide, narrow = (fit.predict(frame[["x"]], level=level) for level in (0.95, 0.5))
    assert (wide.upper - wide.lower >= narrow.upper - narrow.lower).all()


def test_arrays_need_no_names():
    x = numpy.linspace(0, 1, 40)
    fit = fits.fit(x, x**2, "polynomial")
    assert fit.features == ("x",)
    assert fit.seen == {"x": (0, 1)}
    assert fit.predict([0.5]).predicted[0] == pytest.approx(0.25, abs=1e-3)
    assert fits.fit(numpy.column_stack([x, x]), x, "boosting").features == ("x0", "x1")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: fits.fit(f.x, f.y, "isotonc"), "unknown family 'isotonc' (did you mean 'isotonic'?)"),
        (lambda f: fits.fit(f[["x"]] * 0 + 3, f.y, "rational_3"), "a feature that varies, got x = 3 in all 60 rows"),
        (lambda f: fits.fit(f.x.where(f.index > 0), f.y, "isotonic"), "got 1 rows without; features.complete drops"),
        (lambda f: fits.fit(f[["x", "y"]], f.y, "isotonic"), "takes one feature, got 2; for several: boosting"),
        (lambda f: fits.fit(f[["group"]], f.y, "logistic"), "takes numbers, got a column of names; for names: lookup"),
        (lambda f: fits.fit([0, 1], [0, 1], "isotonic"), "at least 3 rows, as many of x as of y, got 2 and 2"),
        (lambda f: left_out(f[:12]), "expected at least 2 values of 'group' to leave one out, got 1 (g0)"),
        (lambda f: fits.cross(f, ["z"], "y", "group", "isotonic"), "none named z; unknown column 'z'"),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(grouped())


def test_rows_without_a_value_are_dropped_and_counted(capsys):
    frame = grouped()
    left_out(frame)
    assert capsys.readouterr().out == ""
    left_out(frame.assign(x=frame.x.where(frame.index > 6)))
    assert capsys.readouterr().out == "dropped 7 of 60 rows without a value (x 7)\n"


def test_every_network_has_a_curve_of_its_own_in_every_family(monkeypatch):
    monkeypatch.setattr(fits, "SINGLE", ("logistic", "isotonic"))
    losses = features.table(published.made_up(3, formats=8))
    own = fits.fit_each(losses, "js_macs", "rational_2")
    assert list(own) == ["rational_2", "logistic", "isotonic"]
    assert list(own.index) == ["net0", "net1", "net2"]
    rows = losses[losses.model == "net1"]
    alone = fits.fit(rows[["js_macs"]], rows.accuracy_loss, "logistic")
    assert own.logistic["net1"].equation == alone.equation
    assert list(fits.fit_each(losses, "js_macs", "isotonic")) == ["isotonic", "logistic"], "no family twice"


def test_coverage_counts_rows_within_their_interval():
    frame = DataFrame({"accuracy_loss": [0.1, 0.5, 0.9], "lower": [0.0, 0.6, 0.9], "upper": [0.2, 0.7, 1.0]})
    unknown = DataFrame({"accuracy_loss": [0.5, None], "lower": [None, 0.0], "upper": [None, 1.0]})
    assert fits.coverage(pandas.concat([frame, unknown.astype(float)])) == 2 / 3
    assert numpy.isnan(fits.coverage(unknown.astype(float)))


SEED = {  # R2 of the published curves, one network alone
    "AlexNet": 0.9819, "AlexNet_BN": 0.9878, "VGG_16": 0.9727, "VGG_19": 0.9648, "Inception_BN": 0.8693,
    "MobileNetV2": 0.9652, "ResNet_18": 0.9181, "ResNet_50": 0.9011, "ResNet_152": 0.8994,
}  # fmt: skip


@published.needed
@pytest.mark.parametrize("model", SEED)
def test_rational_fits_each_published_network_at_least_as_well_as_published(model):
    rows = published.table().query("model == @model")
    found = {f: fits.fit(rows[["js_legacy_macs"]], rows.accuracy_loss, f).r2 for f in ("rational_4", "isotonic")}
    assert SEED[model] <= found["rational_4"] <= found["isotonic"]


@published.needed
@pytest.mark.parametrize(
    ("feature", "family", "in_sample", "held_out", "mae"),
    [
        ("js_legacy_macs", "isotonic", 0.571, 0.31, 0.175),
        ("js_legacy_macs_normalized", "isotonic", 0.78, 0.687, 0.106),
        ("format", "lookup", 0.807, 0.756, 0.093),
        (PSEUDO, "isotonic", 0.9805, 0.9618, 0.0345),
        (PSEUDO, "rational_3", 0.971, 0.967, 0.0365),
        (f"{PSEUDO}_adjusted", "isotonic", 0.935, 0.8855, 0.0595),
    ],
)
def test_published_figures_in_sample_and_out_of_it(feature, family, in_sample, held_out, mae):
    table = features.complete(published.table(), [feature])
    found = fits.cross(table, [feature], "accuracy_loss", "model", family).table()
    score = fits.scores(found.accuracy_loss, found.predicted)
    assert score["r2"] == pytest.approx(held_out, abs=0.005)
    assert score["mae"] == pytest.approx(mae, abs=0.002)
    assert fits.fit(table[[feature]], table.accuracy_loss, family).r2 == pytest.approx(in_sample, abs=0.005)
    assert 0.85 <= fits.coverage(found) <= 0.95
