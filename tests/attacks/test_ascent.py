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


def test_strongest_prefers_success_then_loss_and_keeps_the_image_where_losses_are_nan():
    x = torch.zeros(4, 1, 1, 1)
    strongest = ascent.Strongest(x)
    offer(strongest, [1, 1, 1, 1], [5.0, 1.0, 1.0, torch.nan], [False, False, True, False])
    offer(strongest, [2, 2, 2, 2], [1.0, 2.0, 9.0, torch.nan], [True, False, False, False])
    offer(strongest, [3, 3, 3, 3], [0.5, 1.5, 2.0, torch.nan], [True, False, True, False])
    assert strongest.x.flatten().tolist() == [2.0, 2.0, 3.0, 0.0]
    assert strongest.fooled.tolist() == [True, False, True, False]
    assert strongest.standing().tolist() == [1, 3]
    assert not x.any()


def mean_is_positive(**options):
    """Two logits: class 1 where the mean of the image is positive."""

    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    return ascent.Score(Mean(), torch.tensor([0, 1]), margin, **options)


def test_score_averages_over_draws_and_turns_round_if_targeted():
    x, y = torch.tensor([0.5, -0.25]).view(2, 1, 1, 1), torch.tensor([0, 0])
    for draws in (1, 3):
        losses, fooled = mean_is_positive(draws=draws)(x, y)
        assert_close(losses, torch.tensor([1.0, -0.5]))
        assert fooled.tolist() == [True, False]
    losses, reached = mean_is_positive(targeted=True)(x, y + 1)
    assert_close(losses, torch.tensor([1.0, -0.5]))
    assert reached.tolist() == [True, False]


def test_a_network_that_draws_once_a_forward_is_run_one_draw_after_another():
    (x, y), model, sizes = robust_networks.images(6), robust_networks.Defended(robust_networks.random_resize), []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with ascent.traceless(model, x, runtime.rng(0)):
        logits = ascent.Score(model, y, ce, draws=20).forwards(x).view(20, len(x), -1)
    with ascent.traceless(model, x, runtime.rng(0)):
        losses, _ = ascent.Score(model, y, ce, draws=20)(x, y)
    assert sizes[-20:] == [6] * 20
    assert len(logits.unique(dim=0)) > 5, "of 14 sizes and places"
    assert_close(losses, torch.stack([ce(draw, y) for draw in logits]).mean(0))


def test_gradients_that_are_not_finite_are_said_once():
    x, y = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    x[0] = 1.0
    score, image = ascent.Score(lambda x: x.flatten(1).sqrt(), y, ce), x.requires_grad_()
    with pytest.warns(UserWarning, match=r"NaN or infinite for 3 of 4 images: .* a broken derivative"):
        score.gradient(score(image, y)[0], image)
    score.gradient(score(image, y)[0], image)


def test_climb_lets_the_fooled_leave():
    x, y = torch.tensor([-0.1, -0.25, 0.2]).view(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)

    def advance(x, adversarial, gradient, length):
        return adversarial + length * gradient.sign()

    path = list(ascent.climb(mean_is_positive(), x, y, x, advance, 0.15, 5, active_set=True, score_last=True))
    assert [rows.tolist() for rows, *_ in path] == [[0, 1, 2], [0, 1], [1]]
    assert [fooled.tolist() for *_, fooled in path] == [[False, False, True], [True, False], [True]]


def test_traceless_draws_its_own_numbers():
    torch.manual_seed(1)
    state, x, drawn = torch.get_rng_state(), torch.rand(2, 1, 4, 4, generator=runtime.rng(0)), []
    for seed in (None, None, 7, 7, 8):
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        with ascent.traceless(nn.Identity(), x, rng):
            drawn.append(torch.rand(1).item())
            assert torch.is_grad_enabled()
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert len({drawn[0], drawn[2], drawn[4]}) == 3
    assert ascent.draws_once(robust_networks.Defended(robust_networks.random_resize), robust_networks.images(1)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_computed_once():
    layer, step, calls = nn.Linear(2, 2), nn.Identity(), []
    nn.utils.parametrize.register_parametrization(layer, "weight", step)
    step.register_forward_hook(lambda *arguments: calls.append(1))
    with ascent.traceless(layer, torch.zeros(1, 1, 1, 1), None):
        for _ in range(5):
            layer(torch.zeros(1, 2))
    assert len(calls) == 1
    layer(torch.zeros(1, 2))
    assert len(calls) == 2, "nothing stays cached for the optimizer to outdate"
