import pytest
import torch
from torch import nn

from rqlib import attacks
from rqlib.core import projections
from rqlib.training import noisy_objectives, objectives


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_natural_is_the_mean_cross_entropy_with_smoothed_labels(smoothing):
    model, x, y = nn.Linear(5, 3), torch.randn(8, 5), torch.randint(3, (8,))
    target = (1 - smoothing) * torch.nn.functional.one_hot(y, 3) + smoothing / 3
    expected = -(target * model(x).log_softmax(1)).sum(1).mean()
    bound = objectives.named("natural", label_smoothing=smoothing, attack=pgd())
    torch.testing.assert_close(bound(model, x, y), expected)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch(count=16):
    rng = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 2, 2, generator=rng), torch.randint(3, (count,), generator=rng)


def pgd(**settings):
    settings = {"ball": projections.Linf(0.1), "step_size": 0.05, "steps": 3, "best": False} | settings
    return attacks.named("pgd", **settings)


def gradients(loss, model):
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.parameters()))])


def test_adversarial_is_natural_on_attacked_images_and_mixed_the_mean_of_both():
    model, (x, y) = network().eval(), batch()
    found = objectives.adversarial(model, x, y, attack=pgd())
    assert found.item() == objectives.natural(model, pgd()(model, x, y), y).item()
    assert found > objectives.natural(model, x, y)
    mixed = objectives.mixed(model, x, y, attack=pgd())
    torch.testing.assert_close(mixed, (objectives.natural(model, x, y) + found) / 2)


def test_trades_formula_and_attack():
    model, (x, y), seen = network().eval(), batch(), []

    def attack(model, x, y):
        seen.extend([y, pgd()(model, x, y)])
        return seen[1]

    found = objectives.trades(model, x, y, attack=attack, beta=2.0)
    p = model(x).softmax(1)
    torch.testing.assert_close(seen[0], p)

    def divergence(x):
        return (p * (p.log() - model(x).log_softmax(1))).sum(1)

    expected = objectives.natural(model, x, y) + 2 * divergence(seen[1]).mean()
    torch.testing.assert_close(found, expected)
    noise = projections.Linf(0.1).sample(x)
    assert divergence(seen[1]).mean() > 2 * divergence((x + noise).clamp(0, 1)).mean()


def test_leaky_adds_the_gradients_that_the_attack_left():
    model, (x, y) = network().eval(), batch()
    honest = gradients(objectives.adversarial(model, x, y, attack=pgd()), model)
    expected, iterate, first = honest.clone(), x, pgd(steps=0)(model, x, y)
    for steps in range(3):
        iterate = first if steps == 0 else pgd(steps=steps)(model, x, y)
        expected += gradients(objectives.natural(model, iterate, y), model)
    found = gradients(objectives.leaky_adversarial(model, x, y, attack=pgd()), model)
    torch.testing.assert_close(found, expected)
    assert found.norm() > 2.5 * honest.norm()
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("name", objectives.ROBUST)
def test_robust_objectives_leave_no_trace(name):
    model, (x, y) = network().train(), batch()
    objective = objectives.named(name, attack=pgd())
    losses = []
    for _ in range(2):
        model.load_state_dict(network().state_dict())  # BatchNorm learns from what the objective shows it
        losses.append(objective(model, x, y).item())
    assert losses[0] == losses[1]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(x, batch()[0])


def test_robust_gives_an_objective_and_the_attack_that_validates_it():
    model, (x, y), ball = network().eval(), batch(), projections.Linf(0.1)
    settings = {"epsilon": 0.1, "step_size": 0.05, "steps": 3}
    objective, attack = objectives.robust("mixed", **settings, label_smoothing=0.1)
    expected = objectives.mixed(model, x, y, attack=pgd(), label_smoothing=0.1)
    assert objective(model, x, y).item() == expected.item()
    active = attacks.pgd(model, x, y, ball=ball, step_size=0.05, steps=3, active_set=True)
    assert torch.equal(attack(model, x, y), active)
    natural, none = objectives.robust("natural", **settings)
    assert natural(model, x, y).item() == objectives.natural(model, x, y).item()
    assert none is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: objectives.named("trades"), "expected an attack for the objective 'trades', got none"),
        (lambda: objectives.named("naturel"), r"unknown objective 'naturel' \(did you mean 'natural'\?\)"),
        (lambda: objectives.robust("natural", epsilon=8, step_size=1, steps=1), "8 gray levels are 8 / 255"),
        (lambda: objectives.Ramped(float, 0.0), r"expected .* a share of the epochs in \(0, 1\], got 0.0"),
    ],
)
def test_faulty_objectives_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_smoothed_is_natural_plus_the_divergence_under_noise():
    model, (x, y) = network().eval(), batch()
    torch.manual_seed(3)
    found = noisy_objectives.smoothed(model, x, y, sigma=0.25)
    torch.manual_seed(3)
    clean, noisy = model(x).softmax(1), model(x + 0.25 * torch.randn_like(x)).softmax(1)
    divergence = (clean * (clean.log() - noisy.log())).sum(1).mean()
    torch.testing.assert_close(found, objectives.natural(model, x, y) + 6 * divergence)
    assert noisy_objectives.smoothed(model, x, y, sigma=0.0).item() == pytest.approx(
        objectives.natural(model, x, y).item()
    )
    assert gradients(found, model).any()


def test_a_penalty_is_added_with_its_strength():
    model, (x, y) = network().eval(), batch()
    weights = objectives.penalized(objectives.natural, lambda model: model[1].weight.square().sum(), 0.5)
    expected = objectives.natural(model, x, y) + 0.5 * model[1].weight.square().sum()
    torch.testing.assert_close(weights(model, x, y), expected)
    assert objectives.penalized(objectives.natural, None, 0.5) is objectives.natural
    assert objectives.penalized(objectives.natural, weights, 0.0) is objectives.natural
    with pytest.raises(ValueError, match="expected a penalty strength >= 0, got -1"):
        objectives.penalized(objectives.natural, weights, -1)


def test_the_radius_grows_from_nothing_to_all_of_it():
    """In half of four epochs of two steps; an epoch that is begun again sees the same radii."""
    shares = []
    ramped = objectives.Ramped(lambda share: shares.append(share) or objectives.natural, 0.5)
    model, (x, y) = network().eval(), batch()
    for epoch in (0, 1, 1, 2):
        objectives.begin(ramped, model, epoch, 4, 2)
        for _ in range(2):
            ramped(model, x, y)
    assert shares == [0, 0.25, 0.5, 0.75, 0.5, 0.75, 1, 1]


def test_n_fgsm_takes_one_noisy_step_and_is_validated_under_pgd():
    objective, attack = objectives.robust("n_fgsm", epsilon=0.1, step_size=0.05, steps=3)
    model, (x, y) = network().eval(), batch()
    moved = attacks.noisy_fgsm(model, x, y, ball=projections.Linf(0.1))
    torch.testing.assert_close(objective(model, x, y), objectives.natural(model, moved, y))
    assert attack.keywords["steps"] == 3


def test_objectives_that_minimize_a_bound_have_names():
    assert objectives.named("ibp", epsilon=0.1).epsilon == 0.1
    assert objectives.named("gaussian", sigma=0.1)(network().eval(), *batch()).isfinite()
    with pytest.raises(ValueError, match="did you mean 'crown_ibp'"):
        objectives.named("crown_ipb", epsilon=0.1)
