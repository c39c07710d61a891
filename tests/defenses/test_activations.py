"""Values and gradients of the activations with learned ranges and thresholds."""

import re

import pytest
import torch
from torch import nn

from rqlib.defenses import AveragedRange, DDTReLU, DTReLU, activations

TENTH = 1 / 12
ROWS = [  # x, then for 4 and for 16 levels of [0.2, 1.4]: y, and the derivatives by x, a (b fixed) and b (a fixed)
    (-0.5, (0.2, 0, 1, 0), (0.2, 0, 1, 0)),
    (0.3, (0.2, 1, TENTH, -TENTH), (0.28, 1, TENTH / 5, -TENTH / 5)),
    (0.5, (0.6, 1, -TENTH, TENTH), (0.52, 1, -TENTH / 5, TENTH / 5)),
    (0.55, (0.6, 1, -TENTH / 2, TENTH / 2), (0.52, 1, 0.025, -0.025)),
    (0.9, (1.0, 1, -TENTH, TENTH), (0.92, 1, -TENTH / 5, TENTH / 5)),
    (1.5, (1.4, 0, 0, 1), (1.4, 0, 0, 1)),
]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("row", ROWS)
def test_learned_range(row, which):
    x, lower, upper = number(row[0]), number(0.2), number(1.4)
    y = activations.fake_quantized(torch.relu(x), lower, upper, (3, 15)[which])
    found = [y.item(), *(gradient.item() for gradient in torch.autograd.grad(y, (x, lower, upper)))]
    assert found == pytest.approx(row[1 + which], abs=1e-6)


def test_the_total_derivative_by_the_lower_end_is_1_below_0_inside_and_1_above():
    """With b = a + softplus(beta)."""
    layer = DTReLU(2, learn_lower=True, scale="none").double().eval()
    layer.lower.data.fill_(0.2)
    layer.beta.data.fill_(activations.inverse_softplus(torch.tensor(1.2)))
    for x, expected in ((-0.5, 1), (0.3, 0), (0.9, 0), (1.5, 1)):
        (gradient,) = torch.autograd.grad(layer(torch.tensor([x]).double()).sum(), layer.lower)
        assert gradient.item() == pytest.approx(expected, abs=1e-9)


def test_the_gradient_of_the_range_is_scaled_for_its_end_and_not_for_a_step():
    """n = 6144 activations per image and L = 15: 15^1.5 / sqrt(6144) = 0.7412."""
    x = torch.rand(2, 6, 32, 32, dtype=torch.float64) * 2
    gradients = {}
    for scale in activations.SCALES:
        layer = DTReLU(4, scale=scale).double().eval()
        (gradients[scale],) = torch.autograd.grad(layer(x).sum(), layer.beta)
    assert (gradients["lsq"] / gradients["none"]).item() == pytest.approx(0.7412, abs=1e-4)


def test_fake_quantization_is_idempotent_and_has_torchs_gradient():
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    lower, upper = torch.tensor(-1.0), torch.tensor(2.0)
    y = activations.fake_quantized(x, lower, upper, 15)
    torch.testing.assert_close(activations.fake_quantized(y, lower, upper, 15), y)
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.2, 5, 0, 15)  # -1 ... 2 in steps of 0.2, 0 is code 5
    torch.testing.assert_close(y, theirs)
    ours, peer = (torch.autograd.grad(value.sum(), x)[0] for value in (y, theirs))
    inside = (x > -1) & (x < 2)  # torch lets the gradient pass up to half a step beyond the range
    torch.testing.assert_close(ours[inside], peer[inside])
    assert not ours[~inside].any()


def test_a_range_of_width_zero_gives_its_one_value():
    y = activations.fake_quantized(torch.tensor([-1.0, 0.5, 2.0]), torch.tensor(0.5), torch.tensor(0.5), 15)
    torch.testing.assert_close(y, torch.full((3,), 0.5))


STAIRS = [  # x, y, derivative by x, by the three widths, by the start
    (0.1, 0, 4 / 3, (-0.266667, 0, 0), -4 / 3),
    (0.3, 2 / 3, 4 / 3, (-0.8, 0, 0), -4 / 3),
    (0.6, 2 / 3, 2 / 3, (-0.666667, -0.066667, 0), -2 / 3),
    (1.01, 4 / 3, 2 / 3, (-0.666667, -0.34, 0), -2 / 3),
    (1.6, 4 / 3, 4 / 3, (-1.333333, -1.333333, -0.266667), -4 / 3),
    (2.5, 2, 0, (0, 0, 0), 0),
]


@pytest.mark.parametrize(("x", "y", "by_x", "by_widths", "by_start"), STAIRS)
def test_learned_thresholds(x, y, by_x, by_widths, by_start):
    """Widths 0.5, 1, 0.5 from 0: thresholds at 0.25, 1 and 1.75, steps of 2/3."""
    x, start = number([x]), number(0.0)
    widths = number([0.5, 1, 0.5])
    found = 2 / 3 * activations.stairs(x, start, widths)
    gradients = torch.autograd.grad(found.sum(), (x, widths, start))
    assert found.item() == pytest.approx(y)
    assert gradients[0].item() == pytest.approx(by_x)
    assert gradients[1].tolist() == pytest.approx(by_widths, abs=1e-6)
    assert gradients[2].item() == pytest.approx(by_start)


def test_the_sums_over_many_elements_are_those_of_single_ones():
    torch.manual_seed(0)
    x, widths, start = torch.randn(200, dtype=torch.float64), number([0.3, 0.2, 0.4]), number(-0.1)
    weights = torch.randn(200, dtype=torch.float64)

    def gradients(x, weights):
        return torch.autograd.grad((weights * activations.stairs(x, start, widths)).sum(), (widths, start))

    together = gradients(x, weights)
    single = [gradients(x[i : i + 1], weights[i : i + 1]) for i in range(200)]
    for whole, parts in zip(together, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).sum(0))


@pytest.mark.parametrize("make", [DTReLU, DDTReLU, AveragedRange])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_first_batch_sets_the_range_and_all_levels_are_used(make, bits):
    torch.manual_seed(0)
    layer = make(bits)
    layer(torch.rand(4, 3, 16, 16) * 7)
    found = layer.eval()(torch.rand(8, 3, 32, 32) * 7).unique()
    assert len(found) == 2**bits
    assert found[-1].item() == pytest.approx(7, rel=0.02)
    assert found[0].item() == 0


def test_the_average_moves_towards_the_largest_value_and_stands_still_in_eval_mode():
    layer = AveragedRange(4, decay=0.9)
    layer(torch.full((1, 1, 1, 1), 2.0))
    layer(torch.full((1, 1, 1, 1), 4.0))
    layer.eval()(torch.full((1, 1, 1, 1), 100.0))
    assert layer.upper.item() == pytest.approx(0.9 * 2 + 0.1 * 4)


@pytest.mark.parametrize("name", ["DTReLU_3", "DTReLU_lower_3", "DDTReLU_3", "jacob_ema_3"])
def test_stacks_of_networks(name):
    """Values and gradients of three sets of parameters at once equal those of one after the other."""
    torch.manual_seed(0)
    layers = [activations.parse(name)() for _ in range(3)]
    for layer in layers:
        layer(torch.rand(2, 3, 8, 8) * torch.rand(()) * 5)
        layer.eval()
    x, layer = torch.randn(3, 2, 3, 8, 8) * 2, layers[0]

    def loss(parameters, buffers, x):
        y = torch.func.functional_call(layer, parameters | buffers, (x,))
        return (y * y).sum(), y

    stacked = torch.func.stack_module_state(layers)
    gradients, values = torch.vmap(torch.func.grad(loss, has_aux=True))(*stacked, x)
    for place, one in enumerate(layers):
        expected, y = torch.func.grad(loss, has_aux=True)(
            dict(one.named_parameters()), dict(one.named_buffers()), x[place]
        )
        torch.testing.assert_close(values[place], y)
        torch.testing.assert_close({key: value[place] for key, value in gradients.items()}, expected)


@pytest.mark.parametrize("name", ["DTReLU_4", "DTReLU_8", "DDTReLU_4", "jacob_ema_4"])
def test_under_bfloat16_a_level_is_found_in_float32(name):
    """A level of a bfloat16 signal is that of the same numbers in float32, and the range learns in float32."""
    torch.manual_seed(0)
    layer = activations.parse(name)()
    layer(torch.rand(2, 3, 8, 8) * 3)
    layer.eval()
    x = (torch.randn(4, 3, 8, 8) * 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.requires_grad_())
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, layer(x.float()).bfloat16())
    for parameter in layer.parameters():
        assert not parameter.requires_grad or parameter.grad.dtype == torch.float32


def test_names():
    assert repr(activations.parse("DTReLU_4")()) == "DTReLU(16 levels)"
    assert activations.parse("DTReLU_lower_2")().lower.requires_grad
    assert isinstance(activations.parse("jacob_ema_3")(), AveragedRange)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DTReLU(0), "expected 1 to 8 bits, that is 2 to 256 levels, got 0 bits"),
        (lambda: DDTReLU(9), "got 9 bits"),
        (lambda: DTReLU(4, scale="pact"), "lsq | none, got 'pact'"),
        (lambda: activations.parse("DTRelu_4"), "did you mean 'DTReLU_4'?"),
        (lambda: activations.parse("DTReLU"), "unknown activation 'DTReLU'"),
        (lambda: activations.parse("DTReLU_12"), "expected 1 to 8 bits"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_a_network_with_them_trains():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 16), DTReLU(3), nn.Linear(16, 16), DDTReLU(3), nn.Linear(16, 2))
    x = torch.randn(256, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert (network(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize("name", ["DTReLU_3", "DDTReLU_3", "jacob_ema_3"])
def test_a_value_that_is_no_number_stays_none(name):
    layer = activations.parse(name)()
    layer(torch.rand(4, 8))
    found = layer.eval()(torch.tensor([[torch.nan, 1.0, torch.inf]]))
    assert found.isnan().tolist() == [[True, False, False]]
