import pytest

from rqlib.training import overfitting


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([], ""),
        ([0.3], ""),
        ([0.2, 0.4, 0.45], ""),
        ([0.2, 0.45, 0.43], ""),
        ([0.2, 0.5, 0.46, 0.44], "robust"),
        ([0.2, 0.45, 0.02], "catastrophic"),
        ([0.2, 0.45, 0.02, 0.46], "catastrophic"),
        ([0.15, 0.06], "robust"),
    ],
)
def test_flag(accuracies, expected):
    assert overfitting.flag(accuracies) == expected


def test_largest_fall_is_between_neighbors():
    assert overfitting.largest_fall([0.5, 0.4, 0.1, 0.3]) == pytest.approx(0.3)
    assert overfitting.largest_fall([0.1, 0.2]) == 0
    assert overfitting.largest_fall([0.1]) == 0
