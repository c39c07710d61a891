"""Same logits, the identity's gradient through what cuts it."""

import functools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib import attacks
from rqlib.attacks import straight_through
from rqlib.attacks.straight_through import StraightThrough
from rqlib.core.projections import Linf
from tests import robust_networks


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(2 * x)


CUTTING = {
    "round": torch.round,
    "method": lambda x: x.round(),
    "floor": torch.floor,
    "sign": lambda x: x.sign(),
    "clamp": lambda x: x.clamp(0, 0.1),
    "clip": lambda x: torch.clip(x, min=0.9),
    "clamp in place": lambda x: x.clamp_(0.2, 0.3),
    "round in place": lambda x: x.round_(),
    "floor in place": torch.floor_,
    "ceil in place": lambda x: x.ceil_(),
    "sign in place": lambda x: x.sign_(),
    "clip of a part in place": lambda x: torch.cat([x[:5].clip_(min=0.5), x[5:]]),
    "hardtanh in place": nn.functional.hardtanh_,
    "statement": lambda x: (x.round_(), x)[1],
    "ReLU6": nn.ReLU6(),
    "Hardtanh in place": nn.Hardtanh(inplace=True),
}


@pytest.mark.parametrize("function", CUTTING.values(), ids=CUTTING)
def test_value_stays_and_gradient_passes(function):
    x = torch.linspace(-3, 3, 25).requires_grad_()
    plain, network = Apply(function), StraightThrough(Apply(function))
    values = network(x)
    assert torch.equal(values, plain(x))
    assert network.cuts == 1
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert_close(gradient, torch.full_like(x, 2.0))


def test_whole_gradients_stay_as_they_are():
    model, (x, _) = robust_networks.untrained(), robust_networks.images(4)
    x = x.clone().requires_grad_()
    network = StraightThrough(model)
    expected = torch.autograd.grad(model(x).square().sum(), x)
    assert_close(torch.autograd.grad(network(x).square().sum(), x), expected, rtol=0, atol=0)
    assert network.cuts == 0


def test_nothing_stays_replaced():
    x = torch.tensor([0.4]).requires_grad_()
    StraightThrough(Apply(torch.round))(x)
    assert torch.autograd.grad(x.round(), x)[0].item() == 0


@pytest.mark.filterwarnings("ignore:the gradient of the loss is exactly zero")
def test_attack_through_hard_rounding():
    model = robust_networks.Defended(lambda network, x: network((x * 4).round() / 4))
    x, y = robust_networks.images(100)
    pgd = functools.partial(attacks.pgd, ball=Linf(0.1), step_size=0.02, steps=15)
    with torch.no_grad():
        plain = (model(pgd(model, x, y)).argmax(1) == y).float().mean()
        found = straight_through.attack(pgd)(model, x, y)
        through = (model(found).argmax(1) == y).float().mean()
    assert Linf(0.1).contains(found - x).all()
    assert through < plain - 0.1, "what looked like robustness was a missing gradient"
