from functools import partial

import pytest
import torch

from rqlib import robustness
from rqlib.attacks import methods
from rqlib.core.projections import Linf
from rqlib.robustness import withstanding
from rqlib.robustness.withstanding import ALL, Withstood
from tests import robust_networks


def test_score_counts_and_its_interval_holds_them():
    before = torch.tensor([True] * 80 + [False] * 20)
    right = before & (torch.arange(100) >= 20)
    found = withstanding.score(right, before)
    assert (found["accuracy"], found["success_rate"]) == (0.6, 20 / 80)
    assert (found["low"], found["high"]) == pytest.approx((0.502, 0.691), abs=0.001)
    assert withstanding.score(before & False, before & False)["success_rate"] == 0


def test_the_battery_is_in_order_of_strength_and_what_withstands_all_is_its_minimum(tmp_path):
    model, (images, labels) = robust_networks.trained(adversarial=False), robust_networks.pictures(60)
    found = robustness.battery(model, images, labels, ball=Linf(0.1), steps=6, restarts=2, keep=tmp_path.joinpath)
    assert list(found.right) == ["none", "FGSM", "PGD-10", "PGD-6x2", "PGD-6x2, margin", ALL]
    accuracy = found.table.set_index("attack").accuracy
    assert accuracy["none"] > accuracy["FGSM"] >= accuracy["PGD-10"]
    together = torch.stack([found.right[name] for name in list(found.right)[:-1]]).all(0)
    assert torch.equal(found.right[ALL], together)
    assert accuracy[ALL] == together.float().mean().item() <= accuracy.min()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.pt" for name in list(found.right)[:-1]}


def test_an_interrupted_battery_runs_only_the_attacks_that_are_missing(tmp_path, monkeypatch):
    model, (images, labels) = robust_networks.trained(adversarial=False), robust_networks.pictures(20)
    battery = partial(robustness.battery, model, images, labels, ball=Linf(0.1), steps=2, restarts=1)
    first = battery(keep=tmp_path.joinpath)
    (tmp_path / "FGSM.pt").unlink()

    def never(*args, **settings):
        raise AssertionError("this attack was finished")

    never.__qualname__ = "pgd"
    monkeypatch.setitem(methods.ATTACKS, "pgd", never)
    again = battery(keep=tmp_path.joinpath)
    assert all(torch.equal(first.right[name], again.right[name]) for name in first.right)
    with pytest.raises(AssertionError, match="this attack was finished"):
        battery()


def test_the_first_fooled_image_was_right_before():
    none, pgd = torch.tensor([False, True, True, True]), torch.tensor([False, True, False, False])
    assert Withstood({"none": none, "PGD": pgd}).first_fooled("PGD") == 2
    assert Withstood({"none": none, "PGD": none}).first_fooled("PGD") == 0
