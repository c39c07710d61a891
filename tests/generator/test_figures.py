import pandas
import torch

from rqlib.generator import feature_map, figures
from rqlib.robustness import quantized_networks
from tests.robustness.test_quantized_networks import wide


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
    figure = figures.adjustment({"no target": rows, "target": rows.tail(1)})
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["superposed", "single", "stop"]
    points = [
        (x, y)
        for trace in figure.data
        if trace.mode == "markers" and trace.xaxis == "x"
        for x, y in zip(trace.x, trace.y, strict=True)
    ]
    assert sorted(points) == [(0, 0.0), (1, -4.0), (2, -2.0)]
    assert "target: under attack" in [annotation.text for annotation in figure.layout.annotations]


def points():
    torch.manual_seed(0)
    sets = {name: (torch.randn(20, 5), torch.arange(20) % 4) for name in ("test", "trained")}
    return feature_map.project(sets["test"][0], sets)


def test_maps_have_a_panel_a_set_and_a_color_a_class():
    figure = figures.maps(points(), ["a", "b", "c", "d"])
    assert len(figure.data) == 8
    assert [note.text for note in figure.layout.annotations] == ["test", "trained"]
    colors = {trace.name: trace.marker.color for trace in figure.data}
    assert len(set(colors.values())) == 4
    assert sum(len(trace.x) for trace in figure.data) == 40
    assert figure.data[0].customdata[0][0] == "test"
    many = figures.maps(points(), [str(label) for label in range(100)])
    assert many.data[1].marker.color.startswith("hsl")


def test_relative_says_its_r2_in_every_panel():
    frame = quantized_networks.relative(quantized_networks.published(wide()))
    figure = figures.relative(frame)
    titles = [note.text for note in figure.layout.annotations]
    score = quantized_networks.agreement(frame).set_index(["generator", "attack"]).identity_r2
    assert f"trained, pgd: R<sup>2</sup> of y = x {score['trained', 'pgd']:.2f}" in titles
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert [list(trace.text) for trace in dots] == [["INT_4", "INT_8"]] * 3
