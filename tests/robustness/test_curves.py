import pytest

from rqlib import attacks, measures, robustness
from rqlib.robustness import curves
from tests import robust_networks
from tests.robust_networks import pictures


def test_accuracy_against_epsilon_falls_and_begins_at_the_clean_one():
    model, (images, labels) = robust_networks.trained(adversarial=False), pictures(60)
    curve = robustness.against_epsilon(model, images, labels, [0.0, 8.0, 25.0])
    table = curve.pivot(index="epsilon_255", columns="attack", values="accuracy")
    clean = measures.accuracy(model, images, labels, attack=attacks.none)
    assert table.loc[0.0].tolist() == pytest.approx([clean] * 3)
    assert (table["PGD-20"] <= table.FGSM).all()
    assert (table.noise >= table.FGSM).all()
    assert table["PGD-20"].is_monotonic_decreasing
    assert table["PGD-20"][25.0] < 0.7 < 0.85 < table.noise[25.0]
    assert (curve.low.le(curve.accuracy) & curve.accuracy.le(curve.high)).all()
    l2 = robustness.against_epsilon(model, images, labels, [25.0], norm="L2", attackers=curves.makers(5))
    assert set(l2.attack) == {"noise", "FGSM", "PGD-5"}
    assert (l2.accuracy > table.loc[25.0].min()).all(), "an L2 ball of the same radius is much smaller"


def test_the_report_s_geometry_is_smaller_by_the_deviation_of_the_pixels():
    model, (images, labels) = robust_networks.trained(adversarial=False), pictures(60)
    table = robustness.geometries(model, images, labels, [8, 16]).set_index(["geometry", "epsilon_255"])
    assert table.change_255["pixels", 8] == pytest.approx(8, abs=0.01)
    assert table.change_255["pixels", 16] == pytest.approx(16, rel=0.05), "some pixel starts near 16, and stays inside"
    report, (std,) = table.change_255["normalized input, as the report"], robust_networks.SPEC.std
    for epsilon in (8, 16):
        assert report[epsilon] == pytest.approx(std * table.change_255["pixels", epsilon], rel=0.05)
    assert table.accuracy.between(0, 1).all()
    assert len(table) == 4
