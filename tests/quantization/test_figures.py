import math

import pandas
import pytest

from rqlib import measures, quantization
from rqlib.quantization import choosing, figures
from tests import quantized_networks


@pytest.fixture
def sweep():
    return quantized_networks.made_up_sweep()


def test_number_lines_show_every_value():
    figure = figures.number_lines([quantization.INT(4), quantization.POT(4)])
    assert max(figure.data[1].x) == 1.0
    assert figure.data[0].x == pytest.approx([k / 7 for k in range(-7, 8)])


def test_the_sensitivity_map_keeps_the_order_of_layers_and_formats():
    rows = [("stem", "INT_2", 0.5), ("head", "INT_2", 0.1), ("stem", "INT_8", 0.0), ("head", "INT_8", -0.01)]
    sensitivity = pandas.DataFrame(rows, columns=["layer", "format", "accuracy_loss"])
    (heatmap,) = figures.sensitivity_map(sensitivity).data
    assert (list(heatmap.y), list(heatmap.x)) == (["stem", "head"], ["INT_2", "INT_8"])
    assert heatmap.z.tolist() == [[0.5, 0.0], [0.1, -0.01]]
    assert heatmap.zmin == 0
    assert heatmap.zmax == 0.5


def test_estimated_errors_stand_beside_the_measured_ones():
    rows = {"layer": ["stem", "head"] * 2, "format": ["INT_2"] * 2 + ["INT_8"] * 2}
    measured = pandas.DataFrame(rows | {"logit_error": [0.2, 0.1, 0.002, 0.0]})
    estimated = pandas.DataFrame(rows | {"logit_error": [0.3, 0.1, 0.001, 0.0]})
    figure = figures.estimated_against_measured(estimated, measured)
    assert [trace.name for trace in figure.data] == ["INT_2", "INT_8", "equal"]
    assert list(figure.data[1].x) == [0.002], "a logarithm shows no error of 0"
    assert list(figure.data[0].y) == [0.3, 0.1]


def test_one_line_per_kind_and_per_number_of_exponent_bits(sweep):
    figure = figures.accuracy_against_bits(sweep, 1000)
    assert [line.name for line in figure.data] == ["INT", "POT", "FLOAT, 1 exponent bit", "FLOAT, 4 exponent bits"]
    assert list(figure.data[3].x) == [6, 8]


def test_accuracies_stand_on_an_axis_that_ends_at_1_with_their_intervals(sweep):
    figure = figures.accuracy_against_bits(sweep, 1000)
    line, rows = figure.data[0], sweep[sweep.kind == "INT"]
    assert line.y == pytest.approx(1 - rows.accuracy)
    low, high = measures.wilson(rows.accuracy, 1000)
    assert line.y + line.error_y.array == pytest.approx(1 - low)
    assert line.y - line.error_y.arrayminus == pytest.approx(1 - high)
    axis = figure.layout.yaxis
    assert axis.ticktext[-1] == "1"
    assert max(axis.tickvals) == 1
    assert axis.range[1] == pytest.approx(math.log10(0.4 / 1000))
    perfect = figures.accuracy_against_bits(sweep.assign(accuracy=1.0), 1000).data[0]
    assert set(perfect.y) == {0.5 / 1000}, "no error has no logarithm"


def test_the_frontier_names_the_formats_that_nothing_smaller_beats_and_shows_the_float_network(sweep):
    figure = figures.frontier(sweep, 1000)
    assert [note.text for note in figure.layout.annotations] == [*choosing.undominated(sweep).format, "float 0.9300"]
    traces = {trace.name: trace for trace in figure.data}
    assert [row[0] for row in traces["FLOAT"].customdata] == ["FLOAT_8_E4", "FLOAT_6_E4"], "FLOAT_8_E1 is INT_8"
    weights = sweep.coded_bits[0] / sweep.bits[0]
    assert list(traces["float32"].x) == [pytest.approx(32 * weights / 8 / 1024)]
    assert list(traces["float32"].y) == [pytest.approx(0.07)]
    (alone,) = figures.frontier(sweep[sweep.format == "FLOAT_8_E1"], 1000).data[:1]
    assert [row[0] for row in alone.customdata] == ["FLOAT_8_E1"]
