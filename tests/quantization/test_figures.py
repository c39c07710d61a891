import pandas
import pytest

from rqlib import quantization
from rqlib.quantization import choosing, figures
from tests import quantized_networks


@pytest.fixture
def sweep():
    return quantized_networks.made_up_sweep()


def test_number_lines_show_every_value():
    figure = figures.number_lines([quantization.INT(4), quantization.POT(4)])
    assert max(figure.data[1].x) == 1.0
    assert figure.data[0].x == pytest.approx([k / 7 for k in range(-7, 8)])


def test_layer_bars_keep_the_order_of_layers():
    similarity = pandas.DataFrame({"layer": ["stem", "head"], "js": [0.1, 0.2]})
    sensitivity = pandas.DataFrame({"layer": ["head", "stem"], "accuracy_loss": [0.5, 0.0]})
    upper, lower = figures.layer_bars(similarity, sensitivity, "js").data
    assert tuple(upper.x) == tuple(lower.x) == ("stem", "head")
    assert list(lower.y) == [0.0, 0.5]


def test_estimated_errors_stand_beside_the_measured_ones():
    rows = {"layer": ["stem", "head"] * 2, "format": ["INT_2"] * 2 + ["INT_8"] * 2}
    measured = pandas.DataFrame(rows | {"logit_error": [0.2, 0.1, 0.002, 0.0]})
    estimated = pandas.DataFrame(rows | {"logit_error": [0.3, 0.1, 0.001, 0.0]})
    figure = figures.estimated_against_measured(estimated, measured)
    assert [trace.name for trace in figure.data] == ["INT_2", "INT_8", "equal"]
    assert list(figure.data[1].x) == [0.002], "a logarithm shows no error of 0"
    assert list(figure.data[0].y) == [0.3, 0.1]


def test_one_line_per_kind_and_per_number_of_exponent_bits(sweep):
    figure = figures.accuracy_against_bits(sweep)
    assert [line.name for line in figure.data] == ["INT", "POT", "FLOAT, 1 exponent bit", "FLOAT, 4 exponent bits"]
    assert list(figure.data[3].x) == [6, 8]


def test_the_frontier_names_the_formats_that_nothing_smaller_beats(sweep):
    figure = figures.frontier(sweep)
    assert [note.text for note in figure.layout.annotations] == [*choosing.undominated(sweep).format, "float 0.9300"]
    (floats,) = [trace for trace in figure.data if trace.name == "FLOAT"]
    assert list(floats.customdata) == ["FLOAT_8_E4", "FLOAT_6_E4"], "FLOAT_8_E1 is INT_8, and would hide it"
    (alone,) = figures.frontier(sweep[sweep.format == "FLOAT_8_E1"]).data[:1]
    assert list(alone.customdata) == ["FLOAT_8_E1"]
