"""Estimates and bounds of operator norms, against the singular values of the explicit matrix."""

import math
import random
import re

import pytest
import torch
from torch import Tensor, nn

from rqlib.defenses import norm_bound, operator_norm, spectra


def explicit(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a convolution on inputs of this shape."""
    unit = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return spectra.apply(layer, unit).flatten(1).T.detach()


def convolution(weight: Tensor, stride: int, padding: int, dilation: int, groups: int, **options) -> nn.Conv2d:
    outputs, inputs = weight.shape[:2]
    layer = nn.Conv2d(inputs * groups, outputs, weight.shape[2:], stride, padding, dilation, groups, **options).double()
    layer.weight.data = weight.double()
    return layer


LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
ONES = torch.ones(1, 1, 3, 3)
SOBEL = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]).view(1, 1, 3, 3)
A = (torch.arange(36) % 7 - 3).view(2, 2, 3, 3)
# weight, (H, stride, padding, dilation, groups), exact norm, norm on the torus of ceil((H + P) / S) S points
FIXTURES = [
    (LAPLACIAN, (8, 1, 1, 1, 1), 7.758770483, 7.758770),
    (LAPLACIAN, (8, 2, 1, 1, 1), 4.802517858, 4.898979),
    (ONES, (8, 1, 1, 1, 1), 8.290859369, 9),
    (ONES, (8, 2, 1, 1, 1), 4.532088886, 5),
    (ONES, (7, 2, 1, 1, 1), 4.414213562, 5),
    (ONES, (8, 1, 0, 1, 1), 7.975418527, 9),
    (SOBEL, (8, 1, 1, 1, 1), 7.290859369, 7.878462),
    (SOBEL, (8, 1, 2, 2, 1), 5.854101966, 7.608452),
    (A, (6, 1, 1, 1, 1), 18.826217657, 21.032427),
    (A, (6, 2, 1, 1, 1), 12.474842308, 13.859851),
    (A, (7, 2, 1, 1, 1), 12.702009059, 13.859851),
    (A, (7, 3, 1, 1, 1), 10.619111061, 10.619111),
    (A, (8, 1, 2, 2, 1), 17.295888001, 20.606186),
    ((torch.arange(96) % 5 - 2).view(2, 3, 4, 4), (8, 2, 1, 1, 1), 19.111190548, 20.475486),
    ((torch.arange(36) % 5 - 2).view(4, 1, 3, 3), (6, 2, 1, 1, 2), 6.235201392, 6.954777),
    ((torch.arange(27) % 4 - 1).view(3, 1, 3, 3), (6, 1, 1, 1, 3), 6.163237910, 6.899772),
]


@pytest.mark.parametrize(("weight", "geometry", "exact", "torus"), FIXTURES)
def test_known_norms(weight, geometry, exact, torus):
    size, *rest = geometry
    layer = convolution(weight, *rest)
    shape = (layer.in_channels, size, size)
    points = -(-(size + layer.padding[0]) // layer.stride[0]) * layer.stride[0]
    blocks = spectra._blocks(layer.weight.detach(), (points, points), layer)
    assert torch.linalg.matrix_norm(explicit(layer, shape), 2).item() == pytest.approx(exact, rel=1e-9)
    assert operator_norm(layer, shape, steps=100) == pytest.approx(exact, rel=1e-8)
    assert operator_norm(layer, shape, steps=200, method="power") == pytest.approx(exact, rel=2e-4)
    assert spectra._largest_singular_value(blocks) == pytest.approx(torus, rel=1e-6)
    assert exact <= norm_bound(layer, shape) <= torus * (1 + 2 * spectra.ROUNDING)


def random_convolution(seed: int) -> tuple[nn.Module, tuple[int, ...]] | None:
    """A convolution and the shape of its input; None where torch has no such convolution."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    kind = draw.choice([nn.Conv1d, nn.Conv2d, nn.Conv2d, nn.Conv2d])
    groups, stride, dilation = draw.choice([1, 1, 2]), draw.choice([1, 2, 3]), draw.choice([1, 2])
    inputs, outputs = groups * draw.choice([1, 2]), groups * draw.choice([1, 3])
    kernel, size = draw.choice([1, 2, 3, 4]), draw.choice([5, 6, 7])
    padding = draw.choice([0, 1, 2, "same"]) if stride == 1 and kernel % 2 else draw.choice([0, 1, 2])
    mode = draw.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    if padding != "same" and size + 2 * padding < dilation * (kernel - 1) + 1:
        return None
    layer = kind(inputs, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode).double()
    return layer, (inputs, size) if kind is nn.Conv1d else (inputs, size, size + draw.choice([0, 1, 3]))


def test_the_norm_lies_between_estimate_and_bound_in_300_random_settings():
    found = [case for case in map(random_convolution, range(330)) if case]
    assert len(found) >= 300
    for layer, shape in found:
        matrix = explicit(layer, shape)
        norm = torch.linalg.matrix_norm(matrix, 2).item()
        bound = norm_bound(layer, shape)
        assert operator_norm(layer, shape, steps=40) <= norm * (1 + 1e-9), (layer, shape)
        assert norm <= bound <= norm_bound(layer, shape, gram_steps=5) * (1 + 1e-9), (layer, shape)
        u = torch.randn(len(matrix), dtype=torch.float64)
        backward = spectra.transposed(layer, u.view(spectra.apply(layer, torch.zeros(1, *shape).double()).shape), shape)
        torch.testing.assert_close(backward.flatten(), matrix.T @ u)


def test_circular_padding_on_its_own_torus_is_exact():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular").double()
    exact = torch.linalg.matrix_norm(explicit(layer, (2, 6, 6)), 2).item()
    assert norm_bound(layer, (2, 6, 6)) == pytest.approx(exact, rel=2 * spectra.ROUNDING)


@pytest.mark.parametrize(
    ("mode", "amount", "norm"), [("reflect", 1, 2.0), ("replicate", 1, 2.0), ("replicate", 2, 3.0)]
)
def test_norms_of_paddings(mode, amount, norm):
    """Of a padded image of 6 x 6: the product of both axes."""
    assert spectra._padding_norm(mode, 6, (amount, amount)) ** 2 == pytest.approx(norm)


def test_a_linear_layer_is_exact():
    layer = nn.Linear(7, 5).double()
    exact = torch.linalg.svdvals(layer.weight)[0].item()
    assert operator_norm(layer, (7,)) == pytest.approx(exact)
    assert norm_bound(layer, (7,)) == pytest.approx(exact, rel=2 * spectra.ROUNDING)


@pytest.mark.parametrize("weight", [[[1.0, -3], [-2, 1]], [[1.0, -1], [1, -1]]])
def test_alternating_steps_find_the_norm_where_simultaneous_ones_fail(weight):
    """From vectors of ones the simultaneous form gives -3.618 for the first matrix, and NaN for the second."""
    matrix, v = torch.tensor(weight, dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64)
    for _ in range(50):
        _, v = spectra.power_step(lambda v: matrix @ v, lambda u: matrix.T @ u, v)
    assert (matrix @ v).norm().item() == pytest.approx(torch.linalg.svdvals(matrix)[0].item())


def test_gram_iteration_keeps_its_promise():
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3, padding=1)
    exact, rank = norm_bound(layer, (8, 8, 8)), 8
    for steps in range(1, 7):
        bound = norm_bound(layer, (8, 8, 8), gram_steps=steps)
        assert exact * (1 - 1e-9) <= bound <= exact * rank ** (1 / 2 ** (steps + 1)) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: operator_norm(nn.ReLU(), (3, 8, 8)), "expected a convolution or a linear layer, got ReLU"),
        (lambda: norm_bound(nn.Conv2d(3, 4, 3), (8, 8)), "with C = 3"),
        (lambda: norm_bound(nn.Conv2d(3, 4, 3), (4, 8, 8)), "with C = 3"),
        (lambda: operator_norm(nn.Conv2d(3, 4, 3), (3, 8, 8), method="svd"), "golub_kahan | power, got 'svd'"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
