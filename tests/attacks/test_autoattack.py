"""The optional second opinions; their package may be absent."""

import pytest
import torch

from rqlib import attacks
from rqlib.attacks import autoattack
from rqlib.core.projections import L2, Linf
from tests import robust_networks

installed = pytest.mark.skipif(not autoattack.is_installed(), reason="pyautoattack is not installed")


@installed
@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.8)], ids=["Linf", "L2"])
def test_square_fools_inside_the_ball_and_leaves_no_trace(ball):
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(40)
    state = torch.get_rng_state()
    found = autoattack.square(model, x, y, ball=ball, queries=300)
    assert ball.contains(found - x, 1e-5).all()
    assert found.min() >= 0
    assert found.max() <= 1
    with torch.no_grad():
        assert (model(found).argmax(1) == y).sum() < (model(x).argmax(1) == y).sum() - 5
    assert torch.equal(torch.get_rng_state(), state)


@installed
def test_standard_is_at_least_as_strong_as_pgd():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(4)
    ball = Linf(0.15)
    ours = attacks.pgd(model, x, y, ball=ball, step_size=0.02, steps=20)
    found = autoattack.standard(model, x, y, ball=ball)
    assert ball.contains(found - x, 1e-5).all()
    with torch.no_grad():
        assert (model(found).argmax(1) == y).sum() <= (model(ours).argmax(1) == y).sum()


@pytest.mark.parametrize("attack", [autoattack.square, autoattack.standard])
def test_absent_package_is_named(attack, monkeypatch):
    monkeypatch.setattr(autoattack, "is_installed", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="needs the optional package pyautoattack"):
        attack(robust_networks.untrained(), *robust_networks.images(2), ball=Linf(0.1))


@installed
def test_bad_input_and_empty_batch():
    model, (x, y) = robust_networks.untrained(), robust_networks.images(2)
    with pytest.raises(ValueError, match=r"expected x in \[0, 1\]"):
        autoattack.square(model, x * 9, y, ball=Linf(0.1))
    assert len(autoattack.standard(model, x[:0], y[:0], ball=Linf(0.1))) == 0
