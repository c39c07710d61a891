import pytest

from rqlib.training import overfitting


@pytest.mark.parametrize(
    ("accuracies", "expected", "fall"),
    [
        ([], "", 0),
        ([0.3], "", 0),
        ([0.2, 0.45, 0.43], "", 0.02),
        ([0.2, 0.5, 0.46, 0.44], "robust", 0.04),
        ([0.2, 0.45, 0.02, 0.46], "catastrophic", 0.43),
        ([0.15, 0.06], "robust", 0.09),
    ],
)
def test_flag_and_largest_fall(accuracies, expected, fall):
    assert overfitting.flag(accuracies) == expected
    assert overfitting.largest_fall(accuracies) == pytest.approx(fall)
