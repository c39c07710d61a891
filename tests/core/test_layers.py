import copy

import pytest
import torch
from torch import nn

from rqlib.core import layers


class Residual(nn.Module):
    """conv-BN pairs that can be folded, and three that cannot: read twice, pre-activation, called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.read_twice, self.norm_twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.pre_norm, self.shared = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.shared_norm = nn.BatchNorm2d(4)
        self.head, self.head_norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        y = self.read_twice(x)
        x = self.norm_twice(y) + y
        x = self.shared_norm(self.shared(self.shared(self.pre_norm(x).relu())))
        return self.head_norm(self.head(x.mean((2, 3))))


@pytest.fixture
def residual():
    torch.manual_seed(0)
    model = Residual()
    for _, norm in layers.batchnorms(model):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.normal_(norm.bias)
    return model


def test_folding_keeps_the_function_and_lists_what_is_left(residual):
    x = torch.randn(6, 3, 8, 8)
    state = copy.deepcopy(residual.state_dict())
    folded = layers.fold_batchnorm(residual)
    assert layers.foldable_pairs(residual) == [("stem", "stem_norm"), ("head", "head_norm")]
    assert [name for name, _ in layers.batchnorms(folded)] == ["norm_twice", "pre_norm", "shared_norm"]
    torch.testing.assert_close(folded(x), residual.eval()(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in residual.state_dict().items())


def test_folding_matches_the_formula():
    conv, norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.running_mean)
    nn.init.normal_(norm.weight)
    folded = layers.fold_batchnorm(nn.Sequential(conv, norm))[0]
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(folded.weight, conv.weight * scale[:, None, None, None])
    torch.testing.assert_close(folded.bias, norm.bias + (conv.bias - norm.running_mean) * scale)


class Choose(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


LINE = r"Sequential: .*control flow \(\S*test_layers\.py, line \d+: if x\.sum\(\) > 0:\)\. What .*weights alone"


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), Choose()), f"cannot trace {LINE}"),
        (
            lambda: torch.jit.trace(nn.ReLU(), torch.ones(1)),
            r"cannot trace TopLevelTracedModule: [^()]*\. What needs the graph",
        ),
    ],
    ids=["a part of it", "no line of its own"],
)
def test_a_network_that_cannot_be_traced_is_refused_with_the_line(make, words):
    with pytest.raises(ValueError, match=words):
        layers.trace(make())


class Halve(nn.Module):
    def forward(self, x):
        return x / 2


def test_input_transforms_follow_copies_and_stack():
    layer = nn.Linear(3, 2, bias=False)
    plain = copy.deepcopy(layer)
    layers.attach_input_transform([layer], Halve)
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), plain(x) / 2)
    copied = copy.deepcopy(layer)
    copied.input_transform = nn.Identity()
    torch.testing.assert_close(copied(x), plain(x))
    layers.attach_input_transform([layer], Halve)
    torch.testing.assert_close(layer(x), plain(x) / 4)


def test_outputs_are_of_the_first_call_and_leave_no_hooks(residual):
    x = torch.randn(2, 3, 8, 8)
    found = layers.outputs(residual.eval(), ["stem", "shared", "head"], x)
    torch.testing.assert_close(found["stem"], residual.stem(x))
    assert found["head"].shape == (2, 5)
    calls = []
    with layers.watching(residual, ["shared"], lambda name, inputs, output: calls.append(output)):
        residual(x)
    assert len(calls) == 2
    assert torch.equal(found["shared"], calls[0])
    with pytest.raises(RuntimeError):
        layers.outputs(residual, ["stem"], torch.randn(2, 1, 8, 8))
    assert not any(module._forward_hooks for module in residual.modules())
