import functools

import numpy
import pandas
import pytest

from rqlib.prediction import figures, fits, forecasting, ranking
from rqlib.prediction.forecasting import Predictor
from tests import published

ONE = Predictor(("js_macs_normalized",), "rational_2", "one")


table = functools.partial(published.losses, 4)


def test_model_curves_have_a_panel_with_its_r2_for_each_network():
    own = fits.fit_each(table(), "js_macs", "isotonic").isotonic
    figure = figures.model_curves(table(), "js_macs", own, title="t")
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"{model}: R<sup>2</sup> = {fit.r2:.3f}" for model, fit in own.items()]
    assert sorted({trace.name for trace in figure.data}) == ["INT", "POT", "isotonic"]
    assert sum(trace.showlegend for trace in figure.data) == 3
    assert figure.layout.xaxis.type == "log"


def test_pooled_curve_shows_every_row_the_curve_and_a_band_around_it():
    figure = figures.pooled_curve(table(), forecasting.fit(table(), [ONE]), title="t")
    traces = {trace.name: trace for trace in figure.data}
    assert {"net0", "net1", "net2", "net3", "80% interval", "rational_2"} <= set(traces), "four promise 80%"
    curve, lower = traces["rational_2"], traces["80% interval"]
    assert (numpy.diff(curve.y) >= -1e-12).all()
    assert (numpy.asarray(lower.y) <= numpy.asarray(curve.y)).all()
    assert list(traces["net1"].y) == table()[table().model == "net1"].accuracy_loss.tolist()


def test_zeros_are_drawn_at_the_left_end_of_a_log_axis():
    rows = table().assign(js_macs_normalized=table().js_macs_normalized.where(table().format != "INT_7", 0))
    figure = figures.pooled_curve(rows, forecasting.fit(rows, [ONE]))
    smallest = rows.js_macs_normalized[rows.js_macs_normalized > 0].min()
    assert min(min(trace.x) for trace in figure.data) == pytest.approx(smallest)
    assert figure.layout.xaxis.title.text.endswith("0 at the left end")


def test_board_bars_put_the_best_on_top_and_baselines_in_grey():
    board = ranking.leaderboard(ranking.leave_out(table(), [*ranking.BASELINES, ONE]))
    figure = figures.board_bars(board)
    bars, baselines, in_sample, by_name = figure.data
    assert list(by_name.x) == pytest.approx([board.set_index("predictor").held_out_r2["format name only"]] * len(board))
    assert list(figure.layout.yaxis.categoryarray) == list(board.predictor[::-1])
    assert set(baselines.y) == set(figures.BASELINES) == {one.name for one in ranking.BASELINES}
    assert list(bars.y) == ["one"]
    scores = board.set_index("predictor").held_out_r2
    assert [*bars.x, *baselines.x] == scores[[*bars.y, *baselines.y]].tolist()
    assert list(in_sample.x) == list(board.in_sample_r2)


def test_rows_left_out_are_drawn_measured_against_predicted_and_as_residuals():
    held_out = fits.cross(table(), ONE.features, "accuracy_loss", "model", ONE.family)
    rows = held_out.table()
    exact, first, *_ = figures.measured_against_predicted(rows, title="t").data
    assert list(exact.x) == list(exact.y)
    assert list(first.x) == rows[rows.model == "net0"].predicted.tolist()
    boxes = figures.residuals(rows).data
    assert sum(len(box.y) for box in boxes) == len(rows)
    line, measured, each = figures.coverage(held_out).data
    assert measured.y[figures.LEVELS.index(0.9)] == rows.accuracy_loss.between(rows.lower, rows.upper).mean()
    assert list(each.x) == ["net0", "net1", "net2", "net3"]
    assert numpy.mean(each.y) == pytest.approx(measured.y[figures.LEVELS.index(0.9)])


def test_forecast_tells_apart_what_is_within_the_tolerated_loss():
    known, new = table()[table().model != "net3"], table()[table().model == "net3"]
    found = forecasting.predict(new, forecasting.fit(known, [ONE]))
    over, within, measured = figures.forecast(found, 0.3).data
    assert set(within.x) == set(found.format[found.upper <= 0.3])
    assert len(over.x) + len(within.x) == len(found)
    assert list(measured.y) == found.accuracy_loss.tolist()
    assert len(figures.forecast(found.drop(columns="accuracy_loss"), 0.3).data) == 2


def test_a_forecast_says_where_it_has_no_interval():
    ends = {"lower": [float("nan"), -0.01], "upper": [float("nan"), 0.01]}
    rows = pandas.DataFrame({"format": ["INT_4", "INT_12"], "predicted": [0.1, 0.0], "outside": "", **ends})
    traces = {trace.name: trace for trace in figures.forecast(rows, 0.02).data}
    assert set(traces) == {"interval within the tolerated loss", figures.NO_INTERVAL}
    assert list(traces[figures.NO_INTERVAL].x) == ["INT_4"]


def test_without_intervals_there_is_a_sentence_in_the_place_of_their_coverage():
    losses = published.losses(2)
    trial = fits.cross(losses, ("js_macs",), "accuracy_loss", "model", "isotonic")
    (note,) = figures.coverage(trial).layout.annotations
    assert note.text.startswith("Fewer than three networks")
