"""The table of repairs."""

import pytest
from torch import nn

from rqlib import measures, quantization
from rqlib.quantization import repairs
from tests import quantized_networks


@pytest.mark.filterwarnings("ignore:bias correction. no BatchNorm tells")
def test_one_row_per_set_of_repairs(trained, digits):
    calibration, images, labels = digits.calibration(64), *digits.test.take(200)
    found = repairs.score_repairs(trained, "INT_2", calibration, images, labels, granularity="channel")
    assert found.repairs.tolist() == [" + ".join(chosen) or "none" for chosen in repairs.SETS[:-1]]
    by_hand = quantization.ptq(trained, "INT_2", calibration, granularity="channel", repairs=("bias_correction",))
    accuracy = found.set_index("repairs").accuracy
    assert accuracy["bias_correction"] == measures.accuracy(by_hand, images, labels)
    assert accuracy["bias_correction"] > accuracy["none"]


def test_a_repair_that_is_not_possible_is_a_note():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 5)).eval()
    pictures = quantized_networks.images(8, size=8)
    with pytest.warns(UserWarning, match="no BatchNorm tells"):
        found = repairs.score_repairs(model, "INT_4", pictures, pictures, quantized_networks.small()[2][:8] % 5)
    rows = found.set_index("repairs")
    assert "nothing can be equalized" in rows.note["equalization"]
    assert rows.accuracy.isna().tolist() == [False, True, False, False, True]
