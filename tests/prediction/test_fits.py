import numpy
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
    assert fit.parameters
    assert all(numpy.isfinite(list(fit.parameters.values())))
    assert (fit.family, fit.rows) == (family, len(frame))


def test_leave_one_group_out_agrees_with_scikit_learn():
    frame = grouped().sample(frac=1, random_state=0)
    found = fits.leave_one_group_out(frame, ["x"], "y", "group", "isotonic")
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
    before, after = (fits.leave_one_group_out(rows, ["x"], "y", "group", "rational_2") for rows in (frame, changed))
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


def test_with_two_groups_there_is_a_prediction_but_no_interval():
    found = fits.leave_one_group_out(grouped(2), ["x"], "y", "group", "isotonic")
    assert found.predicted.notna().all()
    assert found.lower.isna().all()


def test_intervals_of_a_fit_come_from_rows_left_out():
    frame = grouped()
    fit = fits.fit(frame[["x"]], frame.y, "isotonic", groups=frame.group)
    truth, predicted = fit.left_out()
    assert truth == pytest.approx(frame.y.to_numpy())
    assert predicted == pytest.approx(
        fits.leave_one_group_out(frame, ["x"], "y", "group", "isotonic").predicted.to_numpy()
    )
    wide, narrow = (fit.predict(frame[["x"]], level=level) for level in (0.95, 0.5))
    assert (wide.upper - wide.lower >= narrow.upper - narrow.lower).all()


def test_arrays_need_no_names():
    x = numpy.linspace(0, 1, 40)
    fit = fits.fit(x, x**2, "polynomial")
    assert fit.features == ("x",)
    assert fit.seen == {"x": (0, 1)}
    assert fit.predict([0.5]).predicted[0] == pytest.approx(0.25, abs=1e-3)
    assert fits.fit(numpy.column_stack([x, x]), x, "boosting").features == ("x0", "x1")


def test_bad_input_says_what_was_expected(capsys):
    frame = grouped()
    with pytest.raises(ValueError, match=r"unknown family 'isotonc' \(did you mean 'isotonic'\?\)"):
        fits.fit(frame.x, frame.y, "isotonc")
    with pytest.raises(ValueError, match="expected a feature that varies, got x = 3 in all 60 rows"):
        fits.fit(frame[["x"]] * 0 + 3, frame.y, "rational_3")
    with pytest.raises(ValueError, match="expected finite x and y, got 1 rows without; features.complete drops"):
        fits.fit(frame.x.where(frame.index > 0), frame.y, "isotonic")
    with pytest.raises(ValueError, match="family 'isotonic' takes one feature, got 2; for several: boosting"):
        fits.fit(frame[["x", "y"]], frame.y, "isotonic")
    with pytest.raises(ValueError, match="family 'logistic' takes numbers, got a column of names; for names: lookup"):
        fits.fit(frame[["group"]], frame.y, "logistic")
    with pytest.raises(ValueError, match="expected at least 3 rows, as many of x as of y, got 2 and 2"):
        fits.fit([0, 1], [0, 1], "isotonic")
    with pytest.raises(ValueError, match=r"expected at least 2 values of 'group' to leave one out, got 1 \(g0\)"):
        fits.leave_one_group_out(frame[:12], ["x"], "y", "group", "isotonic")
    with pytest.raises(ValueError, match="none named z; unknown column 'z'"):
        fits.leave_one_group_out(frame, ["z"], "y", "group", "isotonic")
    assert capsys.readouterr().out == ""
    fits.leave_one_group_out(frame.assign(x=frame.x.where(frame.index > 6)), ["x"], "y", "group", "isotonic")
    assert capsys.readouterr().out == "dropped 7 of 60 rows without a value (x 7)\n"


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
    found = fits.leave_one_group_out(table, [feature], "accuracy_loss", "model", family)
    score = fits.scores(found.accuracy_loss, found.predicted)
    assert score["r2"] == pytest.approx(held_out, abs=0.005)
    assert score["mae"] == pytest.approx(mae, abs=0.002)
    curve = fits.FAMILIES[family](fits.matrix(table, [feature]), table.accuracy_loss.to_numpy())
    assert fits.scores(table.accuracy_loss, curve.predict(fits.matrix(table, [feature])))["r2"] == pytest.approx(
        in_sample, abs=0.005
    )
    assert 0.85 <= found.accuracy_loss.between(found.lower, found.upper).mean() <= 0.95


def test_with_one_group_there_is_a_curve_but_no_interval():
    frame = grouped(1)
    fit = fits.fit(frame[["x"]], frame.y, "isotonic", groups=frame.group)
    assert fit.r2 > 0.5
    assert numpy.isnan(fits.scores(*fit.left_out())["r2"])
    assert fit.predict(frame[["x"]])[["lower", "upper"]].isna().all(axis=None)
