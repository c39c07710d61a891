"""What `classifier` leaves alone and what it shares; what it mends is in `tests/test_odd_networks.py`."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from rqlib import models
from rqlib.core import entry, layers, parametrizations
from rqlib.core.vocabulary import ImageSpec
from tests import networks


class Pair(nn.Module):
    """Two outputs, and an attribute that counts calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), 0

    def forward(self, x, scale=2.0):
        self.calls += 1
        return self.conv(x).mean((2, 3)) * scale, x


@pytest.mark.parametrize("name", list(models.MODELS))
def test_networks_of_the_library_are_returned_as_they_are(name):
    model = networks.narrow(name)
    assert entry.classifier(model) is model


def test_the_result_is_the_same_network_with_another_forward_pass():
    model, x = Pair().train(), torch.rand(2, 3, 8, 8)
    seen = entry.classifier(model)
    assert entry.classifier(seen) is seen
    assert isinstance(seen, Pair)
    assert (type(seen).__name__, type(seen).__module__) == ("Pair", __name__)
    assert list(seen.state_dict()) == list(model.state_dict())
    assert seen.conv is model.conv
    assert torch.equal(seen(x), model(x)[0])
    assert seen.calls == model.calls == 2
    calls = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(module))
    seen(x)
    assert calls == [seen]
    seen.eval()
    assert not model.training


def test_copies_are_independent_and_can_be_traced():
    model, x = Pair().eval(), torch.rand(2, 3, 8, 8)
    copied = copy.deepcopy(entry.classifier(model))
    nn.init.zeros_(copied.conv.weight)
    assert entry.classifier(model)(x).ne(copied(x)).any()
    graph = torch.fx.GraphModule(copied, layers.trace(copied))
    assert torch.equal(graph(x), copied(x))
    assert [node.name for node in graph.graph.find_nodes(op="placeholder")] == ["x"]


def test_gradients_and_optimizers_reach_the_given_network():
    model = Pair()
    seen = entry.classifier(model)
    seen(torch.rand(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(seen.parameters(), lr=1.0).step()
    assert model.conv.weight.grad is not None


class Scaled(Pair):
    """A network that owns a parameter itself."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return super().forward(x)[0] * self.factor, x


def test_a_parametrized_network_can_be_baked_as_a_classifier():
    model, x = Scaled(), torch.rand(2, 3, 8, 8)
    parametrize.register_parametrization(model, "factor", nn.Softplus())
    seen = entry.classifier(model)
    baked = parametrizations.bake(seen)
    assert torch.equal(baked(x), seen(x))
    assert torch.equal(seen(x), model(x)[0])
    assert not parametrize.is_parametrized(baked)
    assert parametrize.is_parametrized(seen)
    assert isinstance(baked, Scaled)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_modules_with_two_names_keep_them_when_wrappers_are_taken_off():
    model = nn.Sequential(torch.compile(nn.Conv2d(3, 3, 1)), nn.ReLU())
    model.append(model[0])
    seen = entry.classifier(model)
    assert seen[0] is seen[2]
    assert type(seen[0]) is nn.Conv2d
    assert type(model[0]) is not nn.Conv2d


def test_double_precision_stays_and_image_precision_does_not_matter():
    model = models.build("SmallCNN", ImageSpec()).double().eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(entry.classifier(model)(x), model(x.double()))
