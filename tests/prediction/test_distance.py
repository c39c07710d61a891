import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame, Series

from rqlib.prediction import distance


@pytest.mark.parametrize(
    ("name", "low", "high", "value", "expected"),
    [
        ("js_macs", 0.0, 0.2, 0.1, 0.0),
        ("js_macs", 0.0, 0.2, 0.21, 0.0),  # within 5% of the range
        ("js_macs", 0.0, 0.2, 0.4, 0.95),
        ("js_macs", 0.1, 0.3, 0.0, 0.45),
        ("weight_count", 1e4, 1e6, 1e8, 0.95),  # as far again as the two powers of ten that were measured
        ("weight_count", 1e6, 1e6, 1e7, 1.95),  # one power of ten; half a one is the least range
        ("batchnorm_share", 1.0, 1.0, 0.0, 1.95),
        ("unfolded_share", 0.0, 0.0, numpy.nan, 0.0),
    ],
)
def test_distances_by_hand(name, low, high, value, expected):
    assert distance.beyond(Series([value]), name, low, high) == pytest.approx([expected], abs=1e-12)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=20), st.floats(0, 1e7), st.floats(0, 1e7))
def test_a_value_further_outside_is_further_away(measured, one, other):
    low, high = min(measured), max(measured)
    if high - low < 1e-3:
        return
    near, far = sorted([one, other])
    values = distance.beyond(Series([near, far]), "js_macs", low, high)
    assert values[0] <= values[1] or near < low
    assert distance.beyond(Series(measured), "js_macs", low, high).max() == 0


def test_the_furthest_feature_is_the_distance_and_all_that_are_outside_are_named():
    seen = {"js_macs": (0.0, 0.2), "depthwise_share": (0.0, 0.1), "not_there": (0.0, 1.0)}
    rows = DataFrame({"js_macs": [0.1, 0.4, 0.3], "depthwise_share": [0.1, 0.3, 0.05]})
    found = distance.measured(rows, seen)
    assert found.distance.tolist() == pytest.approx([0, 0.95, 0.45])
    assert found.outside.tolist() == ["", "js_macs, depthwise_share", "js_macs"]
    table = distance.unlike(rows, seen)
    assert table.feature.tolist() == ["js_macs", "depthwise_share"]
    assert table.formats.tolist() == [2, 1]
    assert table.value.tolist() == [0.4, 0.3]
    assert distance.unlike(rows[:1], seen).empty
    assert distance.measured(rows, {}).distance.eq(0).all()
