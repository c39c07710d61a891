"""Which formats of a sweep are worth having, on a sweep made up by hand."""

import pytest

from rqlib import quantization
from rqlib.quantization import choosing
from tests import quantized_networks


def test_undominated_by_hand():
    best = choosing.undominated(quantized_networks.made_up_sweep())
    assert list(best.format) == ["INT_2", "POT_4", "FLOAT_6_E4", "FLOAT_8_E4"]


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.005, "none"), (0.015, "FLOAT_8_E4"), (0.25, "FLOAT_6_E4"), (0.9, "INT_2")]
)
def test_the_smallest_format_within_a_loss(loss, expected):
    assert quantization.smallest(quantized_networks.made_up_sweep(), loss=loss) == expected


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (0.005, "Every format loses more than 0.5 points; FLOAT_8_E4 loses least, 1.0 points"),
        (0.25, "FLOAT_6_E4 is the smallest format that loses at most 25 points: its weights take 0.188 of the space"),
    ],
)
def test_a_sentence_names_the_smallest_format(loss, words):
    said = quantization.verdict(quantized_networks.made_up_sweep(), 500, loss=loss)
    assert said.startswith(words)
    assert "500" in said
