import pandas
import pytest
import torch

from rqlib import quantization
from rqlib.quantization import figures

ROWS = [("INT_2", 0.2), ("INT_8", 0.9), ("POT_4", 0.6), ("FLOAT_8_E4", 0.92), ("FLOAT_8_E1", 0.9), ("FLOAT_6_E4", 0.7)]


@pytest.fixture
def sweep():
    rows = []
    for name, accuracy in ROWS:
        format = quantization.parse(name)
        rows.append(
            {
                "format": name,
                "kind": format.kind,
                "bits": format.bits,
                "exponent_bits": format.exponent_bits,
                "duplicate_of": format.duplicate_of,
                "accuracy": accuracy,
                "float_accuracy": 0.93,
                "coded_bits": 8192 * format.bits,
            }
        )
    return pandas.DataFrame(rows)


def test_number_lines_show_every_value():
    figure = figures.number_lines([quantization.INT(4), quantization.POT(4)])
    assert [len(line.x) for line in figure.data] == [15, 15]
    assert max(figure.data[1].x) == 1.0
    assert {round(x, 6) for x in figure.data[0].x} == {round(k / 7, 6) for k in range(-7, 8)}


def test_weight_histogram_counts_every_weight():
    weight = torch.randn(1000)
    figure = figures.weight_histogram(weight, weight.round())
    assert [sum(bars.y) for bars in figure.data] == [1000, 1000]
    assert [bars.name for bars in figure.data] == ["float", "quantized"]
    assert figure.layout.yaxis.type == "log"


def test_layer_bars_keep_the_order_of_layers():
    similarity = pandas.DataFrame({"layer": ["stem", "head"], "js": [0.1, 0.2]})
    sensitivity = pandas.DataFrame({"layer": ["head", "stem"], "accuracy_loss": [0.5, 0.0]})
    upper, lower = figures.layer_bars(similarity, sensitivity, "js").data
    assert tuple(upper.x) == tuple(lower.x) == ("stem", "head")
    assert list(lower.y) == [0.0, 0.5]


def test_a_line_a_kind_and_a_line_an_exponent(sweep):
    figure = figures.accuracy_against_bits(sweep)
    assert [line.name for line in figure.data] == ["INT", "POT", "FLOAT, 1 exponent bits", "FLOAT, 4 exponent bits"]
    assert list(figure.data[3].x) == [6, 8]
    assert len({line.line.color for line in figure.data}) == 4
    only = figures.accuracy_against_bits(sweep[sweep.kind == "POT"])
    assert [line.name for line in only.data] == ["POT"]


def test_undominated_by_hand(sweep):
    best = figures.undominated(sweep)
    assert list(best.format) == ["INT_2", "POT_4", "FLOAT_6_E4", "FLOAT_8_E4"]
    figure = figures.frontier(sweep)
    assert [note.text for note in figure.layout.annotations] == [*best.format, "float 0.9300"]
    assert {trace.name for trace in figure.data} == {"INT", "POT", "FLOAT", "undominated"}
    (floats,) = [trace for trace in figure.data if trace.name == "FLOAT"]
    assert list(floats.customdata) == ["FLOAT_8_E4", "FLOAT_6_E4"], "FLOAT_8_E1 is INT_8, and would hide it"
    (alone,) = figures.frontier(sweep[sweep.format == "FLOAT_8_E1"]).data[:1]
    assert list(alone.customdata) == ["FLOAT_8_E1"]
