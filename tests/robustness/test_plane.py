import pytest
import torch
import torch.nn.functional as F

from rqlib import robustness
from rqlib.robustness import plane
from tests import robust_networks
from tests.robust_networks import BALL


def test_a_plane_reaches_epsilon_in_both_directions_and_stays_within_the_pixels():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(5)
    around = plane.through(model, x, y, ball=BALL)
    for step in (around.along, around.aside):
        assert BALL.norm(step).tolist() == pytest.approx([BALL.epsilon] * 5)
    assert torch.equal(around.at(0.0, 0.0), x)
    far = around.at(30.0, -30.0)
    assert far.amin() == 0
    assert far.amax() == 1


def test_loss_surface_is_highest_up_the_gradient():
    model, (x, y) = robust_networks.trained(adversarial=True), robust_networks.images(30)
    surface = robustness.loss_surface(model, x, y, ball=BALL, points=5)
    assert list(surface.columns) == ["gradient", "random", "loss"]
    assert len(surface) == 25
    rise = surface.groupby("gradient").loss.mean()
    assert rise.is_monotonic_increasing
    center = surface[(surface.gradient == 0) & (surface.random == 0)].loss.item()
    with torch.no_grad():
        assert center == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)


def test_decision_slice_has_the_answer_in_the_middle_and_others_uphill():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(1)
    answers = robustness.decision_slice(model, x, y, ball=BALL, points=21)
    middle = answers[(answers.gradient == 0) & (answers.random == 0)].prediction.item()
    assert middle == model(x).argmax(1).item()
    assert len(answers) == 21**2
    assert answers[answers.gradient == answers.gradient.max()].prediction.ne(middle).any()
    assert model.training is False
