"""Weights rounded in training: their levels, their gradients, and that saved ones stay as they are."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from rqlib.core import parametrizations
from rqlib.defenses import quantized_weights
from rqlib.defenses.quantized_weights import LearnedStep, RangeQuantized


@given(
    seed=st.integers(0, 2**31 - 1),
    bits=st.integers(1, 8),
    count=st.integers(1, 300),
    scale=st.sampled_from([1e-6, 0.05, 1.0, 300.0]),
    shift=st.sampled_from([-2.0, -0.7, 0.0, 0.3, 5.0]),
    whole=st.booleans(),
)
def test_saved_weights_stay_as_they_are(seed, bits, count, scale, shift, whole):
    """Bit for bit, also where many values lie halfway between two levels."""
    w = (torch.randn(count, generator=torch.Generator().manual_seed(seed)) + shift) * scale
    w = (w * 2).round() / 2 if whole else w
    rounded = RangeQuantized(bits)(w)
    assert torch.equal(RangeQuantized(bits)(rounded), rounded)
    assert len(rounded.unique()) <= 2**bits
    step = max(w.max().item(), 0.0) - min(w.min().item(), 0.0)
    assert (rounded - w).abs().max() <= 0.51 * step / (2**bits - 1) + 1e-12


def test_zero_is_a_level():
    torch.manual_seed(0)
    w = torch.randn(64, 9) * (torch.rand(64, 9) > 0.5)
    rounded = RangeQuantized(2)(w)
    assert not rounded[w == 0].any()
    assert len(rounded.unique()) == 4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_and_gradient_are_torchs(bits):
    torch.manual_seed(0)
    w = torch.randn(6, 3, 5, 5, requires_grad=True)
    rounded = RangeQuantized(bits)(w)
    step, lowest = rounded.detach().unique().diff().min().item(), rounded.min().item()
    theirs = torch.fake_quantize_per_tensor_affine(w, step, round(-lowest / step), 0, 2**bits - 1)
    torch.testing.assert_close(rounded, theirs)
    weights = torch.randn_like(w)
    ours, peer = (torch.autograd.grad((weights * y).sum(), w)[0] for y in (rounded, theirs))
    assert torch.equal(ours, peer)


@pytest.mark.parametrize("w", [torch.zeros(5), torch.full((5,), 0.3), torch.full((5,), -2.0)])
def test_equal_weights_stay(w):
    torch.testing.assert_close(RangeQuantized(4)(w), w, rtol=1e-4, atol=0)


def test_the_learned_step_starts_and_moves_as_lsqs():
    """Against torch's own learnable fake quantization, and the start ``2 mean|w| / sqrt(Q)``."""
    torch.manual_seed(0)
    w = torch.randn(8, 27, requires_grad=True)
    layer = LearnedStep(4, w)
    assert layer.step.item() == pytest.approx(2 * w.abs().mean().item() / 7**0.5)
    factor = 1 / (w.numel() * 7) ** 0.5
    theirs_step = layer.step.detach().clone().view(1).requires_grad_()
    theirs = torch._fake_quantize_learnable_per_tensor_affine(w, theirs_step, torch.zeros(1), -7, 7, factor)
    ours = layer(w)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(w)
    found = torch.autograd.grad((weights * ours).sum(), (w, layer.step))
    known = torch.autograd.grad((weights * theirs).sum(), (w, theirs_step))
    beyond = w.abs() > 7 * layer.step  # torch lets the gradient pass up to half a step beyond the range
    torch.testing.assert_close(found[0], known[0] * ~beyond)
    torch.testing.assert_close(found[1].view(1), known[1])
    assert torch.equal(layer(ours), ours)


def test_by_the_step_the_gradient_is_that_of_the_formula():
    w = torch.tensor([-3.0, -0.6, 0.2, 0.9, 5.0], dtype=torch.float64)
    layer = LearnedStep(3, w)
    layer.step = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(layer(w).sum(), layer.step)
    expected = -3 + (-1 + 1.2) + (0 - 0.4) + (2 - 1.8) + 3
    assert gradient.item() == pytest.approx(expected / 15**0.5)


@pytest.mark.parametrize("name", ["range_3", "LSQ_3"])
def test_a_network_learns_with_them_and_is_saved_plain(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    for layer in (network[0], network[2]):
        parametrize.register_parametrization(layer, "weight", quantized_weights.parse(name)(layer))
    x = torch.randn(256, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert (network(x).argmax(1) == y).float().mean() > 0.9
    plain = parametrizations.bake(network)
    torch.testing.assert_close(plain(x), network(x))
    assert len(plain[0].weight.unique()) <= 8
    assert plain[0].weight.requires_grad


def test_stacks_of_weights():
    torch.manual_seed(0)
    w = torch.randn(3, 4, 9)
    for layer in (RangeQuantized(4), LearnedStep(4, w)):
        torch.testing.assert_close(torch.vmap(layer)(w), torch.stack([layer(one) for one in w]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quantized_weights.parse("range8"), "unknown weight format 'range8'"),
        (lambda: quantized_weights.parse("lsq_4"), "unknown weight format 'lsq_4'; known: range_4, LSQ_4"),
        (lambda: quantized_weights.parse("LSQ_1"), "expected 2 to 8 bits for LSQ, got 1 bit"),
        (lambda: quantized_weights.parse("LSQ_9"), "got 9 bits"),
        (lambda: quantized_weights.parse("range_0"), "got 0 bits"),
        (lambda: RangeQuantized(16), "expected 1 to 8 bits"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
