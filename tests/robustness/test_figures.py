import math
import re

import pandas
import pytest
import torch
from scipy import stats
from torch import nn

from rqlib import robustness
from rqlib.robustness import figures, study_claims
from tests import made_up_study

CLASSES = ("cat", "dog", "owl")


def network(answer):
    """Answers one class, whatever it sees."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = 5.0 * nn.functional.one_hot(torch.tensor(answer), 3).float()
    return model


def test_attack_pictures_say_answer_change_and_label():
    x = torch.full((2, 3, 2, 2), 0.5)
    figure = figures.attack_pictures(network(1), x, x + 4 / 255, torch.tensor([1, 2]), CLASSES, title="t")
    texts = [note.text for note in figure.layout.annotations]
    assert texts[:3] == ["dog, 99%", "at most 4 gray levels", "dog, 99%"]
    assert texts[3] == "dog, 99% (is owl)"
    assert len(figure.data) == 6


def test_accuracy_against_epsilon_has_a_line_and_a_band_for_each_attack():
    lost = pandas.Series([0, 0.2, 0.4] * 2)
    curve = pandas.DataFrame({"attack": ["FGSM"] * 3 + ["PGD-20"] * 3, "epsilon_255": [0, 4, 8] * 2})
    curve = curve.assign(accuracy=0.9 - lost, low=0.8 - lost, high=1 - lost, success_rate=lost)
    figure = figures.accuracy_against_epsilon(curve)
    assert [trace.name for trace in figure.data if trace.name] == ["FGSM", "FGSM", "PGD-20", "PGD-20"]
    lines = [trace for trace in figure.data if trace.fill is None]
    assert list(lines[1].y) == [0, 0.2, 0.4]
    band = next(trace for trace in figure.data if trace.fill)
    assert list(band.x) == [0, 4, 8, 8, 4, 0]
    assert max(band.y) == 1


def test_transfer_heatmap_keeps_rows_and_columns_apart():
    matrix = pandas.DataFrame([[0.1, 0.6], [0.7, 0.2]], index=["a", "b"], columns=["a", "b"])
    heatmap = figures.transfer_heatmap(matrix).data[0]
    assert heatmap.z[0][1] == 0.6
    assert list(heatmap.y) == ["a", "b"]


def test_checks_color_the_status():
    table = pandas.DataFrame({"number": [1, 2], "name": "a", "status": ["PASS", "FAIL"], "value": "1", "meaning": "x"})
    html = figures.checks(table).to_html()
    assert figures.STATUS["FAIL"] in html
    assert figures.STATUS["WARN"] not in html
    assert html.index("FAIL") < html.index("PASS")


def test_planes_are_drawn_with_the_gradient_to_the_right():
    ticks = [-1.0, 0.0, 1.0]
    rows = [{"gradient": a, "random": b, "loss": a, "prediction": int(a > 0) * 2} for a in ticks for b in ticks]
    surface = figures.loss_landscape(pandas.DataFrame(rows)).data[0]
    assert [row[2] for row in surface.z] == [1.0, 1.0, 1.0]
    decisions = figures.decision_map(pandas.DataFrame(rows), CLASSES).data[0]
    assert list(decisions.colorbar.ticktext) == ["cat", "owl"]
    assert [row[2] for row in decisions.customdata] == ["owl"] * 3
    assert [row[0] for row in decisions.z] == [0, 0, 0]


def test_quantized_bars_have_one_group_for_each_format():
    row = {"clean": 0.9, "masked": 0.5, "everywhere": 0.4, "transfer": 0.6, "minimum": 0.35, "images": 100}
    figure = figures.quantized_bars(pandas.DataFrame([{"format": "FP32"} | row, {"format": "INT_4"} | row]))
    assert list(figure.data[-1].y) == [0.35, 0.35]
    assert list(figure.data[-1].x) == ["float", "INT_4"]
    low, high = stats.binomtest(35, 100).proportion_ci(method="wilson")
    assert figure.data[-1].error_y.arrayminus[0] == pytest.approx(0.35 - low)
    assert figure.data[-1].error_y.array[0] == pytest.approx(high - 0.35)


def test_losses_of_variants_are_those_of_one_radius():
    log = made_up_study.history(seeds=2)
    figure = figures.losses_of_variants(pandas.concat([log, log.assign(trained_255=4.0, loss=9.0)]), 8.0)
    lines = [trace for trace in figure.data if trace.fill is None]
    assert [line.name for line in lines] == list(robustness.VARIANTS)
    own = log[log.variant == "Q+A"].pivot(index="epoch", columns="seed", values="loss")
    assert list(lines[4].y) == list(own.mean(axis=1))
    band = figure.data[8]
    assert max(band.y) == own.max().max()


def test_bars_before_and_after_have_corrected_stars_and_intervals():
    table = made_up_study.table(seeds=5, radii=(4.0, 8.0))
    tests = robustness.families(table)
    figure = figures.before_and_after(table, tests)
    clean, robust = figure.data[2:4]
    assert (clean.name, robust.name) == ("clean accuracy", "robust accuracy")
    rows = table[(table.variant == "A+R") & (table.epsilon_255 == 8)].robust_accuracy
    place = list(robust.x).index("A+R")
    low, high = stats.t.interval(0.95, 4, rows.mean(), rows.std() / 5**0.5)
    assert robust.y[place] == rows.mean()
    assert robust.error_y.array[place] == pytest.approx((high - low) / 2)
    found = tests[(tests.variant == "A+R") & (tests.epsilon_255 == 8)].set_index("family").stars
    assert robust.text[place] == found[study_claims.ROBUST] != ""
    assert clean.text[place] == found[study_claims.CLEAN] == ""
    assert robust.text[list(robust.x).index("original")] == ""
    one = figures.before_and_after(made_up_study.table(seeds=1), robustness.families(made_up_study.table(seeds=1)))
    assert math.isnan(one.data[0].error_y.array[0])


def test_intervals_of_shares_end_at_0_and_at_1():
    table = made_up_study.table(seeds=3, radii=(4.0,))
    table.loc[(table.variant == "Q+R") & (table.seed == 0), ["clean_accuracy", "robust_accuracy"]] = 0.05, 0.0
    for bars in figures.before_and_after(table, robustness.families(table)).data:
        assert max(bars.y + bars.error_y.array) == pytest.approx(1.0)
        assert min(bars.y - bars.error_y.arrayminus) == pytest.approx(0.0)


def test_the_headings_of_the_checks_stand_above_their_columns():
    table = pandas.DataFrame({"number": [1], "name": "a", "status": "PASS", "value": "b", "meaning": "c"})
    html = figures.checks(table).to_html()
    assert re.search(r"#T_\w+ th \{\s*text-align: left", html)


def test_success_against_epsilon_has_a_band_over_seeds():
    table = made_up_study.table()
    figure = figures.success_against_epsilon(table)
    line, band = figure.data[1], figure.data[0]
    assert line.name == "original"
    assert list(line.x) == [4, 8, 12, 16]
    assert line.y[0] == table[(table.variant == "original") & (table.epsilon_255 == 4)].success_rate.mean()
    assert min(band.y) < line.y[0] < line.y[3] < max(band.y)


def test_feature_maps_have_a_row_for_each_variant():
    figure = figures.feature_maps_of({"original": torch.rand(3, 4, 4), "RSE": torch.rand(9, 4, 4)})
    assert list(figure.layout.yaxis.ticktext) == ["original", "RSE"]
