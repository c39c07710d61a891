"""The machinery below the attacks: what is kept, who leaves the batch, where randomness comes from."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rqlib.attacks import ascent
from rqlib.attacks.losses import ce, margin
from rqlib.core import runtime
from tests import robust_networks


def offer(strongest, values, losses, fooled):
    index = torch.arange(len(losses))
    x = torch.tensor(values).view(-1, 1, 1, 1).float()
    strongest.offer(index, x, torch.tensor(losses), torch.tensor(fooled))


def test_strongest_prefers_success_then_loss():
    strongest = ascent.Strongest(torch.zeros(3, 1, 1, 1))
    offer(strongest, [1, 1, 1], [5.0, 1.0, 1.0], [False, False, True])
    offer(strongest, [2, 2, 2], [1.0, 2.0, 9.0], [True, False, False])
    offer(strongest, [3, 3, 3], [0.5, 1.5, 2.0], [True, False, True])
    assert strongest.x.flatten().tolist() == [2.0, 2.0, 3.0]
    assert strongest.fooled.tolist() == [True, False, True]
    assert strongest.standing().tolist() == [1]


def test_strongest_keeps_the_image_where_losses_are_nan():
    strongest = ascent.Strongest(torch.zeros(1, 1, 1, 1))
    offer(strongest, [1], [float("nan")], [False])
    assert strongest.x.item() == 0


def test_strongest_does_not_touch_what_it_was_given():
    x = torch.zeros(2, 1, 1, 1)
    offer(ascent.Strongest(x), [1, 1], [1.0, 1.0], [True, True])
    assert_close(x, torch.zeros_like(x))


def mean_is_positive(draws=1):
    """Two logits: class 1 where the mean of the image is positive."""

    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    return ascent.Score(Mean(), torch.tensor([0, 1]), margin, draws=draws)


def test_score_averages_over_draws():
    x, y = torch.tensor([0.5, -0.25]).view(2, 1, 1, 1), torch.tensor([0, 0])
    for draws in (1, 3):
        losses, fooled = mean_is_positive(draws)(x, y)
        assert_close(losses, torch.tensor([1.0, -0.5]))
        assert fooled.tolist() == [True, False]


def seen(model, x, y, *, draws, seed=0):
    """(logits (draws, B, K), losses (B,), gradient): two scores that draw the same random numbers."""
    image = x.clone().requires_grad_()
    with ascent.traceless(model, x, runtime.rng(seed)):
        logits = ascent.Score(model, y, ce, draws=draws).forwards(x).view(draws, len(x), -1)
    with ascent.traceless(model, x, runtime.rng(seed)):
        score = ascent.Score(model, y, ce, draws=draws)
        losses, _ = score(image, y)
    return logits, losses, score.gradient(losses, image)


def test_a_network_that_draws_once_a_forward_is_run_one_draw_after_another():
    (x, y), model, sizes = robust_networks.images(6), robust_networks.RandomResize(), []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    logits, losses, _ = seen(model, x, y, draws=20)
    assert sizes[-20:] == [6] * 20
    assert len(logits.unique(dim=0)) > 5, "of 14 sizes and places"
    assert_close(losses, torch.stack([ce(draw, y) for draw in logits]).mean(0))


def test_gradients_of_many_draws_agree_also_where_a_forward_draws_once():
    (x, y), model, agreement = robust_networks.images(20), robust_networks.RandomResize(), []
    for draws in (1, 100):
        first, *others = (seen(model, x, y, draws=draws, seed=seed)[2].flatten(1) for seed in range(4))
        agreement.append(min(torch.cosine_similarity(first, other).median().item() for other in others))
    assert agreement[0] < 0.7 < 0.9 < agreement[1]


class Noisy(nn.Module):
    """Logits with a draw of its own for every image, or none."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma, self.sizes = sigma, []

    def forward(self, x):
        self.sizes.append(len(x))
        logits = x.flatten(1)[:, :3]
        return logits + self.sigma * torch.randn_like(logits)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_other_draws_are_tiled(sigma):
    x, y, model = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64), Noisy(sigma)
    ascent.Score(model, y, ce, draws=7)(x, y)
    assert model.sizes[-1] == 35
    assert set(model.sizes[:-1]) <= {8, 1}, "the probe: copies of one image"


def test_the_probe_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert ascent.draws_once(robust_networks.RandomResize(), robust_networks.images(1)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_that_are_not_finite_are_said_once():
    x, y = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    x[0] = 1.0
    score, image = ascent.Score(nn.Sequential(nn.Flatten(), Root()), y, ce), x.requires_grad_()
    with pytest.warns(UserWarning, match=r"NaN or infinite for 3 of 4 images: .* a broken derivative"):
        score.gradient(score(image, y)[0], image)
    score.gradient(score(image, y)[0], image)


class Root(nn.Module):
    """The root of what may be 0."""

    def forward(self, x):
        return x.sqrt()


def test_targeted_score_turns_both_round():
    model = mean_is_positive().model
    score = ascent.Score(model, torch.tensor([0, 1]), margin, targeted=True)
    losses, reached = score(torch.tensor([0.5, -0.25]).view(2, 1, 1, 1), torch.tensor([1, 1]))
    assert_close(losses, torch.tensor([1.0, -0.5]))
    assert reached.tolist() == [True, False]


def test_climb_lets_the_fooled_leave():
    x, y = torch.tensor([-0.1, -0.25, 0.2]).view(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)
    path = list(
        ascent.climb(
            mean_is_positive(),
            x,
            y,
            x,
            lambda x, a, g, length: a + length * g.sign(),
            0.15,
            5,
            active_set=True,
            score_last=True,
        )
    )
    assert [rows.tolist() for rows, *_ in path] == [[0, 1, 2], [0, 1], [1]]
    assert [fooled.tolist() for *_, fooled in path] == [[False, False, True], [True, False], [True]]


def test_traceless_draws_its_own_numbers():
    torch.manual_seed(1)
    state, x, drawn = torch.get_rng_state(), torch.rand(2, 1, 4, 4, generator=runtime.rng(0)), []
    for seed in (None, None, 7, 7, 8):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with ascent.traceless(nn.Identity(), x, generator):
            drawn.append(torch.rand(1).item())
            assert torch.is_grad_enabled()
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert len({drawn[0], drawn[2], drawn[4]}) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_computed_once():
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight):
            type(self).calls += 1
            return weight * 1

    layer = nn.Linear(2, 2)
    nn.utils.parametrize.register_parametrization(layer, "weight", Counted())
    Counted.calls = 0
    with ascent.traceless(layer, torch.zeros(1, 1, 1, 1), None):
        for _ in range(5):
            layer(torch.zeros(1, 2))
    assert Counted.calls == 1
    layer(torch.zeros(1, 2))
    assert Counted.calls == 2, "nothing stays cached for the optimizer to outdate"
