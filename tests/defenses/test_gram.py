"""Penalties on the rows of weights."""

import re

import pytest
import torch
from torch import nn

from rqlib import defenses, models
from rqlib.core import layers
from rqlib.defenses import folded, gram, orthogonality
from tests.networks import COLOR, narrow

KNOWN = [
    ([[1.0, 0, 1], [0, 2, 0]], {"gram_columns": 11, "gram_rows": 10, "off_diagonal": 0, "cosine": 0, "srip": 9}),
    (
        [[1.0, 2], [3, -1]],
        {"gram_columns": 99, "gram_rows": 99, "off_diagonal": 2, "cosine": 0.04, "srip": 9.192582**2},
    ),
]


@pytest.mark.parametrize(("weight", "expected"), KNOWN)
def test_known_values(weight, expected):
    w = torch.tensor(weight, dtype=torch.float64)
    assert {name: gram.FORMS[name](w).item() for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("form", gram.FORMS)
def test_gradients_are_those_of_finite_differences(form):
    torch.manual_seed(0)
    w = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gram.FORMS[form], w)


def test_orthogonal_rows_are_not_penalized_but_by_the_mistake():
    w = nn.init.orthogonal_(torch.empty(4, 9, dtype=torch.float64))
    for form in ("gram_rows", "off_diagonal", "cosine", "srip"):
        assert gram.FORMS[form](w).item() == pytest.approx(0, abs=1e-12)
    assert gram.gram_columns(w).item() == pytest.approx(9 - 4)
    assert gram.seed_form_4(torch.eye(2, dtype=torch.float64)).item() == pytest.approx(0.1716, abs=1e-4)


def test_tall_weights_are_penalized_on_the_side_where_zero_can_be_reached():
    assert gram.matrices(torch.zeros(64, 3, 3, 3)).shape == (1, 27, 64)
    tall = nn.init.orthogonal_(torch.empty(64, 27)).view(64, 3, 3, 3)
    assert gram.gram_rows(gram.matrices(tall)[0]).item() == pytest.approx(0, abs=1e-8)


def test_a_batchnorm_behind_a_layer_is_folded_in():
    """Scaling the rows of a layer before BatchNorm changes nothing that the network computes, nor the penalty."""
    model = narrow("SmallCNN").double()
    before = orthogonality(model, "gram_rows").item()
    layer, norm = (dict(model.named_modules())[name] for name in layers.foldable_pairs(model)[0])
    layer.weight.data *= 3
    layer.bias.data *= 3
    norm.running_mean *= 3
    norm.running_var.mul_(9).add_(8 * norm.eps)
    assert orthogonality(model, "gram_rows").item() == pytest.approx(before)


def test_the_last_layer_is_not_penalized():
    model = models.build("SmallCNN", COLOR, seed=0)
    before = orthogonality(model).item()
    model.classifier.linear3.weight.data.mul_(0).add_(1)
    assert orthogonality(model).item() == before


def test_descent_makes_rows_orthogonal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), 2)
    for _ in range(300):
        optimizer.zero_grad()
        orthogonality(model).backward()
        optimizer.step()
    assert orthogonality(model).item() < 1e-4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: orthogonality(narrow("LeNet"), "brock"), "unknown form of orthogonality 'brock'"),
        (lambda: orthogonality(nn.Sequential(nn.ReLU())), "choose penalty='none'"),
        (lambda: orthogonality(nn.Sequential(nn.Linear(3, 2))), "hidden convolution or linear layers"),
        (lambda: defenses.penalty("spectrl", narrow("LeNet"), COLOR.shape), "did you mean 'spectral'?"),
        (lambda: defenses.penalty("spectral", nn.Sequential(nn.Linear(3, 2)), (3,)), "choose penalty='none'"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_each_group_of_a_convolution_is_a_matrix_of_its_own():
    torch.manual_seed(0)
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Flatten(), nn.Linear(4, 2))
    assert orthogonality(depthwise).item() == pytest.approx(0, abs=1e-10)
    grouped = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    parts = [gram.cosine(part.flatten(1)) / 3**2 for part in grouped.weight.chunk(2)]
    found = orthogonality(nn.Sequential(grouped, nn.Flatten(), nn.Linear(6, 2)))
    torch.testing.assert_close(found, torch.stack(parts).mean())


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(8, 2), nn.Linear(12, 8)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())


def test_the_layer_that_writes_the_logits_is_spared_wherever_it_is_defined():
    assert folded.hidden_layers(HeadFirst()).names == ["body"]
