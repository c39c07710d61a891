"""Random self-ensembles."""

import re

import pytest
import torch
from torch import nn

from rqlib import attacks, defenses
from rqlib.defenses import add_noise, majority, with_members
from rqlib.defenses.noise import Noise
from tests.networks import COLOR, narrow


class Fixed(nn.Module):
    """Logits that do not depend on the image but on noise alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_the_logits_are_the_log_of_the_mean_of_the_members_probabilities():
    ensemble = add_noise(narrow("SmallCNN"), 0.2, members=4).eval()
    x = torch.rand(3, *COLOR.shape)
    torch.manual_seed(0)
    found = ensemble(x)
    torch.manual_seed(0)
    single = with_members(ensemble, 1)
    tiled = ensemble.network(ensemble.pixels(x.repeat(4, 1, 1, 1))).softmax(1).view(4, 3, -1)
    torch.testing.assert_close(found.exp(), tiled.mean(0))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))
    assert single.members == 1
    assert ensemble.members == 4


def test_noise_is_drawn_for_every_image_and_every_call_and_leaves_the_image_alone():
    ensemble = add_noise(Fixed(), 0.5, members=1).eval()
    x = torch.zeros(2, *COLOR.shape)
    one, other = ensemble(x), ensemble(x)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, other)
    assert not x.any()


def test_noise_stands_before_every_convolution_but_not_before_linear_layers():
    model = narrow("SmallCNN")
    noisy = add_noise(model, 0.1)
    stds = [module.std for module in noisy.modules() if isinstance(module, Noise)]
    assert sorted(stds) == [0.05, 0.1]  # two convolutions, of which the first sees noisy pixels
    assert not any(isinstance(module, Noise) for module in model.modules())


def test_without_noise_it_is_the_network_itself():
    model = narrow("SmallCNN")
    x = torch.rand(4, *COLOR.shape)
    torch.testing.assert_close(add_noise(model, 0.0).eval()(x), model(x).log_softmax(1), rtol=1e-4, atol=1e-5)


def test_in_training_there_is_one_draw():
    ensemble = add_noise(narrow("SmallCNN"), 0.1, members=50).train()
    assert ensemble(torch.rand(2, *COLOR.shape)).shape == (2, 10)
    assert ensemble.pixels.training


def test_the_majority_is_more_stable_than_one_draw():
    torch.manual_seed(0)
    ensemble = add_noise(Fixed(), 2.0, members=1).eval()
    ensemble.network.conv.bias.data = torch.tensor([0.02, 0.0, 0.0])
    x = torch.zeros(200, *COLOR.shape)
    one = (ensemble(x).argmax(1) == 0).float().mean()
    many = (majority(ensemble, x, draws=25) == 0).float().mean()
    assert many > one


def test_attacks_apply():
    ensemble = add_noise(narrow("SmallCNN"), 0.05, members=3).eval()
    x, ball = torch.rand(4, *COLOR.shape), attacks.Linf(0.1)
    y = majority(ensemble, x)
    attacked = attacks.pgd(with_members(ensemble, 20), x, y, ball=ball, **attacks.pace(ball, 3))
    assert (attacked - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: add_noise(narrow("LeNet"), -0.1), "expected standard deviations >= 0, got -0.1 on pixels"),
        (lambda: add_noise(narrow("LeNet"), 0.1, float("nan")), "nan inside"),
        (lambda: add_noise(narrow("LeNet"), 0.1, members=0), "members=0"),
        (lambda: add_noise(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), 0.1), "expected a network with convolutions"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_the_chapter_hands_them_on():
    assert defenses.add_noise is add_noise


def test_no_images_have_no_logits():
    made = add_noise(narrow("SmallCNN"), 0.1).eval()
    assert made(torch.rand(0, *COLOR.shape)).shape == (0, made(torch.rand(1, *COLOR.shape)).shape[1])
