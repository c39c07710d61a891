"""The machinery below the attacks: what is kept, who leaves the batch, where randomness comes from."""

import torch
from torch import nn
from torch.testing import assert_close

from rqlib import ascent, attack_losses, runtime


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

    return ascent.Score(Mean(), torch.tensor([0, 1]), attack_losses.margin, draws=draws)


def test_score_averages_over_draws():
    x, y = torch.tensor([0.5, -0.25]).view(2, 1, 1, 1), torch.tensor([0, 0])
    for draws in (1, 3):
        losses, fooled = mean_is_positive(draws)(x, y)
        assert_close(losses, torch.tensor([1.0, -0.5]))
        assert fooled.tolist() == [True, False]


def test_targeted_score_turns_both_round():
    model = mean_is_positive().model
    score = ascent.Score(model, torch.tensor([0, 1]), attack_losses.margin, targeted=True)
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
            [0.15] * 5,
            active_set=True,
            score_last=True,
        )
    )
    assert [rows.tolist() for rows, *_ in path] == [[0, 1, 2], [0, 1], [1]]
    assert [fooled.tolist() for *_, fooled in path] == [[False, False, True], [True, False], [True]]


def test_traceless_draws_its_own_numbers():
    torch.manual_seed(1)
    state, x, drawn = torch.get_rng_state(), torch.rand(2, 1, 4, 4, generator=runtime.generator(0)), []
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
