"""What arrives at activations, their curves, and their costs."""

import re

import pytest
import torch
from torch import nn

from rqlib.defenses import activation_costs, activation_signals, activations
from rqlib.defenses.activations import DTReLU
from tests.networks import COLOR, narrow


def test_signals_are_what_relu_gets():
    torch.manual_seed(0)
    shared = nn.ReLU()
    network = nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 6), shared, DTReLU(3))
    x = torch.randn(10, 4)
    found = activation_signals.signals(network, x)
    first = network[0](x)
    second = network[2](first.relu())
    torch.testing.assert_close(found["1"], torch.cat([first.flatten(), second.flatten()]).detach())
    torch.testing.assert_close(found["4"], second.relu().flatten().detach())
    assert network.training


def test_every_activation_of_a_network_is_found():
    model = narrow("ResNet_18")
    found = activation_signals.signals(model, torch.rand(2, *COLOR.shape))
    assert len(found) == sum(isinstance(module, nn.ReLU) for module in model.modules())


def test_curves_of_fresh_activations():
    signal = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    names = ["DTReLU_3", "DDTReLU_2", "jacob_ema_3"]
    curves = activation_signals.curves(activation_signals.started(names, signal), signal)
    outputs = curves.groupby("activation").output
    assert list(curves.activation.unique()) == ["ReLU", *names]
    assert outputs.nunique()["DTReLU_3"] == 8
    assert outputs.nunique()["DDTReLU_2"] == 4
    relu = curves[curves.activation == "ReLU"]
    assert (relu.output == relu.input.clip(lower=0)).all()
    assert outputs.max()["DTReLU_3"] == pytest.approx(signal.relu().quantile(0.999).item(), rel=1e-4)


def test_costs_have_one_row_per_activation_and_size():
    rows = activation_costs.costs(bits=2, elements=(64, 256), least_seconds=0.001)
    assert len(rows) == 10
    assert (rows.seconds > 0).all()


def test_the_loop_computes_the_same():
    torch.manual_seed(0)
    x = (torch.randn(300, dtype=torch.float64) * 2).requires_grad_()
    start = torch.tensor(-0.1, dtype=torch.float64, requires_grad=True)
    widths = torch.rand(7, dtype=torch.float64).requires_grad_()
    weights = torch.randn(300, dtype=torch.float64)
    values, gradients = [], []
    for stairs in (activations.stairs, activation_costs.stairs_by_loop):
        values.append(stairs(x, start, widths))
        gradients.append(torch.autograd.grad((weights * values[-1]).sum(), (x, start, widths)))
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: activation_signals.signals(nn.Linear(2, 2), torch.zeros(1, 2)), "expected a network with nn.ReLU"),
        (lambda: activation_signals.started(["DTRelu_3"], torch.zeros(3)), "did you mean 'DTReLU_4'"),
        (lambda: activation_costs.costs(bits=0), "got 0 bits"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
