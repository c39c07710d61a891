from functools import partial

import pytest
import torch

from rqlib import attacks, measures, quantization
from rqlib.core import runtime
from rqlib.core.projections import Linf
from rqlib.data import datasets
from rqlib.quantization import fake_quantize
from rqlib.robustness import curves, quantized_networks
from tests import robust_networks


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def pictures(count=120):
    x, y = robust_networks.images(count)
    return datasets.to_uint8(x), y


def test_score_counts_and_its_interval_holds_them():
    before = torch.tensor([True] * 80 + [False] * 20)
    right = before & (torch.arange(100) >= 20)
    found = curves.score(right, before)
    assert found["accuracy"] == 0.6
    assert found["success_rate"] == 20 / 80
    assert 0.49 < found["low"] < 0.51
    assert 0.69 < found["high"] < 0.70
    assert curves.score(before & False, before & False)["success_rate"] == 0


def test_accuracy_against_epsilon_falls_and_begins_at_the_clean_one():
    model, (images, labels) = robust_networks.trained(adversarial=False), pictures()
    curve = curves.against_epsilon(model, images, labels, [0.0, 8.0, 25.0])
    table = curve.pivot(index="epsilon_255", columns="attack", values="accuracy")
    clean = measures.accuracy(model, images, labels, attack=attacks.none)
    assert table.loc[0.0].tolist() == pytest.approx([clean] * 3)
    assert (table["PGD-20"] <= table.FGSM).all()
    assert (table.noise >= table.FGSM).all()
    assert table["PGD-20"].is_monotonic_decreasing
    assert table["PGD-20"][25.0] < 0.7 < 0.85 < table.noise[25.0]
    assert (curve.low.le(curve.accuracy) & curve.accuracy.le(curve.high)).all()
    l2 = curves.against_epsilon(model, images, labels, [25.0], norm="L2", attackers=curves.makers(5))
    assert set(l2.attack) == {"noise", "FGSM", "PGD-5"}
    assert (l2.accuracy > table.loc[25.0].min()).all(), "an L2 ball of the same radius is much smaller"


def test_the_report_s_geometry_is_smaller_by_the_deviation_of_the_pixels():
    model, (images, labels) = robust_networks.trained(adversarial=False), pictures(60)
    table = curves.geometries(model, images, labels, [8, 16]).set_index(["geometry", "epsilon_255"])
    assert table.change_255["pixels", 8] == pytest.approx(8, abs=0.01)
    assert table.change_255["pixels", 16] == pytest.approx(16, rel=0.05), "some pixel starts near 16, and stays inside"
    report, (std,) = table.change_255["normalized input, as the report"], robust_networks.SPEC.std
    for epsilon in (8, 16):
        assert report[epsilon] == pytest.approx(std * table.change_255["pixels", epsilon], rel=0.05)
    assert table.accuracy.between(0, 1).all()
    assert len(table) == 4


def test_quantized_networks_are_claimed_by_the_minimum():
    model, (images, labels) = robust_networks.trained(adversarial=True), pictures(60)
    attack = partial(attacks.pgd, ball=Linf(0.1), step_size=0.02, steps=8)
    table = quantized_networks.quantized(model, ["INT_3", "INT_8"], images, images, labels, attack=attack).set_index(
        "format"
    )
    ways = table[["masked", "everywhere", "transfer"]]
    assert (table.minimum <= ways.min(axis=1)).all()
    assert (ways.max(axis=1) <= table.clean).all()
    robust = measures.accuracy(model, images, labels, attack=attack)
    assert abs(ways.loc["INT_8", "masked"] - robust) < 0.1


def test_unmasked_gradients_pass_where_the_range_is_left():
    model, (images, _) = robust_networks.trained(adversarial=False), pictures(20)
    network = quantization.ptq(model, "INT_4", images // 4)  # calibrated on dark images: bright ones leave the range
    x = (images / 255).requires_grad_()
    masked, passing = (torch.autograd.grad(twin(x).sum(), x)[0] for twin in (network, fake_quantize.unmasked(network)))
    assert torch.equal(network(x), fake_quantize.unmasked(network)(x))
    assert (passing != 0).float().mean() > 1.2 * (masked != 0).float().mean()


def test_decision_slice_has_the_answer_in_the_middle_and_others_uphill():
    model, (images, labels) = robust_networks.trained(adversarial=False), pictures(1)
    plane = curves.decision_slice(model, images / 255, labels, ball=Linf(0.1), points=21)
    middle = plane[(plane.gradient == 0) & (plane.random == 0)].prediction.item()
    assert middle == model(images / 255).argmax(1).item()
    assert len(plane) == 21**2
    assert plane[plane.gradient == plane.gradient.max()].prediction.ne(middle).any()
    assert model.training is False
