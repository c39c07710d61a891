import math

import pandas
import pytest
import torch

from rqlib import data, prediction
from rqlib.generator import feature_map, figures
from rqlib.generator.adjustment import Target


def test_training_draws_what_there_is():
    history = pandas.DataFrame({"epoch": [1, 2], "cross_entropy": [2.0, 1.0], "class_accuracy": [0.1, 0.9]})
    with_norms = figures.training(history.assign(batchnorm_distance=[3.0, 0.1]))
    assert [trace.name for trace in with_norms.data] == ["cross-entropy", "batchnorm distance", "classified as asked"]
    without = figures.training(history.assign(total_variation=[0.4, 0.2]))
    assert without.data[1].name == "total variation"
    assert list(without.data[1].y) == [0.4, 0.2]


def test_adjustment_marks_every_round_with_its_action():
    rows = pandas.DataFrame({
        "round": [0, 1, 2], "action": ["superposed", "single", "stop"],
        "clean_difference": [0.0, -4.0, -2.0], "robust_difference": [50.0, 0.5, 0.5],
    })  # fmt: skip
    rounds = pandas.concat([rows.assign(generator="adjusted"), rows.tail(1).assign(generator="targeted")])
    figure = figures.adjustment(rounds, {"adjusted": None, "targeted": Target(0.94, 0.2)})
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["superposed", "single", "stop"]
    marks = [trace for trace in figure.data if trace.mode == "markers" and trace.xaxis == "x"]
    assert sorted((trace.x[0], trace.y[0]) for trace in marks) == [(0, 0.0), (1, -4.0), (2, -2.0)]
    assert "target 94% clean, 20% attacked: under attack" in [note.text for note in figure.layout.annotations]


def points():
    torch.manual_seed(0)
    sets = {name: (torch.randn(20, 5), torch.arange(20) % 4) for name in ("test", "trained")}
    return feature_map.project(sets["test"][0], sets)


def test_maps_have_a_panel_for_every_set_and_a_color_for_every_class():
    figure = figures.maps(points(), ["a", "b", "c", "d"])
    assert len(figure.data) == 8
    assert [note.text for note in figure.layout.annotations] == ["test", "trained"]
    colors = {trace.name: trace.marker.color for trace in figure.data}
    assert len(set(colors.values())) == 4
    assert sum(len(trace.x) for trace in figure.data) == 40
    assert figure.data[0].customdata[0][0] == "test"
    many = figures.maps(points(), [str(label) for label in range(100)])
    assert many.data[1].marker.color.startswith("hsl")


def test_samples_have_a_row_for_every_class():
    made = data.Split(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.arange(8) % 2)
    figure = figures.samples(made, ["cat", "dog"], name="adjusted")
    assert list(figure.layout.yaxis.ticktext) == ["cat", "dog"]
    assert figure.layout.title.text == "Generated images by class: adjusted"


def test_the_forecast_says_how_far_it_is_from_the_truth():
    rows = pandas.DataFrame({"format": ["INT_4", "INT_8"], "predicted": [0.2, 0.0], "accuracy_loss": [0.3, 0.0]})
    figure = figures.forecast(rows.assign(lower=math.nan, upper=math.nan, outside="", level=math.nan), title="net")
    assert figure.layout.title.text == "net: R<sup>2</sup> 0.778, mean absolute error 0.050"


def test_relative_says_its_r2_in_every_panel():
    kept = {"format": ["INT_4", "INT_8"], "test": [0.5, 0.9], "pseudo": [0.4, 0.8]}
    panels = [(generator, attack) for generator in ("trained", "adjusted") for attack in ("clean", "pgd")]
    rows = [pandas.DataFrame({"model": "net", "generator": one, "attack": attack, **kept}) for one, attack in panels]
    figure = figures.relative(pandas.concat(rows))
    titles = [note.text for note in figure.layout.annotations]
    assert "adjusted, pgd:<br>mean error 0.10,<br>R<sup>2</sup> of y = x 0.75" in titles
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert [list(trace.text) for trace in dots] == [["INT_4", "INT_8"]] * 4
    assert [trace.showlegend for trace in dots] == [True, False, False, False]


@pytest.mark.parametrize("on_test", [0.0, 0.9])
def test_of_a_network_that_is_never_right_there_is_no_relative_accuracy(on_test):
    rows = pandas.DataFrame({"format": ["FP32", "INT_4"], "test_clean": on_test, "pseudo_clean": 0.0, "model": "net"})
    frame = prediction.relative(rows.assign(generator="trained"))
    assert prediction.agreement(frame).empty
    assert {"generator", "attack", "identity_r2"} <= set(prediction.agreement(frame))
    assert figures.relative(frame).layout.title.text.endswith("or the float network never right)")
