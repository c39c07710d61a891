"""Attacks against closed forms, other libraries and brute force; they leave no trace and refuse bad input."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from rqlib.attacks import methods
from rqlib.attacks.losses import margin
from rqlib.core.projections import L2, Linf
from rqlib.core.vocabulary import ImageSpec
from rqlib.models import catalog
from tests import robust_networks

BALLS = {"Linf": Linf(0.1), "L2": L2(0.8)}
SETTINGS = {
    "fgsm": {"ball": Linf(0.1)},
    "pgd": {"ball": Linf(0.1), "step_size": 0.02, "steps": 4, "restarts": 2},
    "noise": {"ball": Linf(0.1), "samples": 3},
    "wrm": {"gamma": 0.5, "steps": 3},
}
every_attack = pytest.mark.parametrize("name", methods.ATTACKS)
both = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)


def wrong(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


def losses(model, x, y):
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


def linear(classes, *, seed=0, size=5):
    """A random linear classifier of 1 x size x size images, and images that no perturbation takes out of [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(40, 1, size, size, generator=rng, dtype=torch.float64)
    return model.eval(), x, torch.randint(0, classes, (40,), generator=rng)


def margins(model, x, y):
    """Smallest z_y - z_j over the other classes."""
    with torch.no_grad():
        return -margin(model(x), y)


def smallest_margin(model, x, y, ball):
    """Closed form: min over j of z_y - z_j - epsilon ||w_y - w_j|| in the dual norm."""
    weight, order = model[1].weight.detach(), 1 if isinstance(ball, Linf) else 2
    with torch.no_grad():
        logits = model(x)
    reach = (weight[y][:, None] - weight[None]).norm(p=order, dim=2)
    lowest = logits.gather(1, y[:, None]) - logits - ball.epsilon * reach
    return lowest.scatter(1, y[:, None], torch.inf).amin(1)


@both
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_two_class_linear_optimum(ball, loss):
    model, x, y = linear(2)
    found = methods.pgd(model, x, y, ball=ball, step_size=ball.epsilon / 2, steps=50, loss=loss)
    assert_close(margins(model, found, y), smallest_margin(model, x, y, ball), rtol=0, atol=1e-5)


@both
def test_linear_optimum_over_ten_classes(ball):
    model, x, y = linear(10)
    attack = functools.partial(methods.pgd, ball=ball, step_size=ball.epsilon / 2, steps=50, loss="margin")
    above = margins(model, attack(model, x, y, restarts=20), y) - smallest_margin(model, x, y, ball)
    assert above.min() > -1e-9, "nothing is below the closed form"
    assert (above < 1e-5).float().mean() >= 0.9, "ascent on a maximum of ten planes may end on another of them"


@both
def test_fgsm_is_the_linear_optimum_in_one_step(ball):
    model, x, y = linear(2)
    found = methods.fgsm(model, x, y, ball=ball)
    assert_close(margins(model, found, y), smallest_margin(model, x, y, ball), rtol=0, atol=1e-9)


@both
@every_attack
def test_inside_ball_and_box_and_stronger_than_nothing(name, ball):
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(60)
    settings = SETTINGS[name] | ({"ball": ball} if "ball" in SETTINGS[name] else {})
    found = methods.named(name, **settings)(model, x, y)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert found.min() >= 0
    assert found.max() <= 1
    assert name == "wrm" or ball.contains(found - x).all()
    assert losses(model, found, y).mean() > losses(model, x, y).mean()


anything = st.fixed_dictionaries(
    {
        "ball": st.one_of(st.builds(Linf, st.floats(0, 1)), st.builds(L2, st.floats(0, 3))),
        "step_size": st.floats(0, 2),
        "steps": st.integers(0, 3),
        "restarts": st.integers(1, 2),
        "loss": st.sampled_from(["ce", "margin", "dlr"]),
        **{flag: st.booleans() for flag in ("random_start", "best", "active_set", "targeted")},
    }
)


@given(anything)
@settings(deadline=None, max_examples=40)
def test_always_inside(settings):
    x, y = robust_networks.images(5)
    found = methods.pgd(robust_networks.untrained(), x, y, **settings)
    assert settings["ball"].contains(found - x).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_order_of_strength():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(297)
    ball = Linf(0.1)
    fooled = [
        wrong(model, x, y),
        wrong(model, methods.noise(model, x, y, ball=ball), y),
        wrong(model, methods.fgsm(model, x, y, ball=ball), y),
        wrong(model, methods.pgd(model, x, y, ball=ball, step_size=0.02, steps=20), y),
        wrong(model, methods.pgd(model, x, y, ball=ball, step_size=0.02, steps=20, restarts=5), y),
    ]
    counts = [mask.sum().item() for mask in fooled]
    assert counts == sorted(counts)
    assert counts[3] > counts[1] + 20
    assert (fooled[4] >= fooled[3]).all(), "more restarts keep what one restart found"


def test_matches_other_libraries_bit_for_bit():
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    evasion = pytest.importorskip("art.attacks.evasion", reason="adversarial-robustness-toolbox is not installed")
    classification = pytest.importorskip("art.estimators.classification")
    model, (x, y) = robust_networks.trained(adversarial=True), robust_networks.images(100)
    epsilon, step = 0.1, 0.025
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    estimator = classification.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1), device_type="cpu"
    )
    theirs = {
        "torchattacks": torchattacks.PGD(model, eps=epsilon, alpha=step, steps=10, random_start=False),
        "foolbox": lambda x, y: foolbox.attacks.LinfPGD(abs_stepsize=step, steps=10, random_start=False)(
            wrapped, x, y, epsilons=epsilon
        )[1],
        "art": lambda x, y: torch.tensor(
            evasion.ProjectedGradientDescent(
                estimator, eps=epsilon, eps_step=step, max_iter=10, batch_size=len(x), verbose=False
            ).generate(x.numpy(), y.numpy())
        ),
    }
    ball = Linf(epsilon)
    ours = functools.partial(methods.pgd, model, ball=ball, step_size=step, steps=10, random_start=False, best=False)
    batches = list(zip(x.split(4), y.split(4), strict=True))  # some take the mean loss: exact in powers of two
    expected = torch.cat([ours(*batch) for batch in batches])
    assert wrong(model, expected, y).float().mean() > wrong(model, x, y).float().mean()
    for name, attack in theirs.items():
        found = torch.cat([attack(*batch) for batch in batches])
        assert torch.equal(found, expected), f"{name}: {(found != expected).float().mean():.2%} of the pixels differ"


def test_best_iterate_is_never_weaker_than_the_last():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(100)
    attack = functools.partial(methods.pgd, model, x, y, ball=Linf(0.1), step_size=0.09, steps=7)
    best, last = attack(), attack(best=False)
    stronger = losses(model, best, y) > losses(model, last, y) + 1e-6
    assert stronger.any(), "the step size is chosen so that the last iterate overshoots"
    assert (wrong(model, best, y) >= wrong(model, last, y)).all()
    same = wrong(model, best, y) == wrong(model, last, y)
    assert (losses(model, best, y) >= losses(model, last, y) - 1e-5)[same].all()


def test_watch_sees_every_iterate():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(20)
    seen = []
    options = {"restarts": 2, "watch": lambda loss, fooled: seen.append(loss)}
    found = methods.pgd(model, x, y, ball=Linf(0.1), step_size=0.02, steps=6, **options)
    assert len(seen) == 2 * 7
    ever = wrong(model, found, y)
    highest = torch.stack(seen).amax(0)
    assert_close(losses(model, found, y)[~ever], highest[~ever], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("restarts", [1, 3])
def test_active_set_fools_the_same_images(restarts):
    model, (x, y) = robust_networks.trained(adversarial=True), robust_networks.images(297)
    attack = functools.partial(methods.pgd, model, x, y, ball=Linf(0.1), step_size=0.02, steps=20, restarts=restarts)
    everything, active = wrong(model, attack(), y), wrong(model, attack(active_set=True), y)
    assert 0 < everything.sum() < len(y)
    if restarts == 1:
        assert torch.equal(everything, active)
    assert abs(everything.sum() - active.sum()) <= 3, "later starts differ: fewer images draw them"


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_every_loss_fools_and_reaches_a_target(loss):
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(60)
    attack = functools.partial(methods.pgd, model, x, loss=loss)
    target = (y + 1) % 10
    assert wrong(model, attack(y, ball=Linf(0.25), step_size=0.03, steps=20), y).all()
    reached = attack(target, ball=Linf(0.4), step_size=0.05, steps=40, targeted=True)
    assert loss == "dlr" or not wrong(model, reached, target).any(), "DLR is not made for targets"


def test_eot_gradient_is_the_mean_over_draws():
    """Quadratic of noisy input: E[gradient] = gradient at the mean, so many draws find the noise-free direction."""
    (x, y), agreement, sizes = robust_networks.images(8), [], []

    def noisy(network, x):
        sizes.append(len(x))
        return network(x + 0.3 * torch.randn_like(x))

    clean = methods.fgsm(robust_networks.trained(adversarial=False), x, y, ball=Linf(0.1)) - x
    for draws in (1, 300):
        delta = methods.fgsm(robust_networks.Defended(noisy), x, y, ball=Linf(0.1), eot_samples=draws) - x
        agreement.append((delta.sign() == clean.sign()).float().mean().item())
    assert agreement[1] > agreement[0]
    assert sizes == [8, 8, 2400], "one batch of eight copies tells that the draws can be tiled into one"


def test_result_is_a_function_of_its_arguments():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(10)
    attack = functools.partial(methods.pgd, model, ball=Linf(0.1), step_size=0.02, steps=2, best=False)
    assert torch.equal(attack(x, y), attack(x, y))
    same = [attack(x, y, rng=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], attack(x, y, rng=torch.Generator().manual_seed(4)))
    rng = torch.Generator().manual_seed(3)
    assert not torch.equal(attack(x, y, rng=rng), attack(x, y, rng=rng))
    first, second = (methods.noise(model, part, y, ball=Linf(0.1), samples=1) - part for part in (x, x.flip(3)))
    assert not torch.allclose(first, second), "other images start elsewhere"


def test_wrm_follows_its_formula():
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(10)
    gamma, expected = 0.3, x.clone()
    for step in range(4):
        expected.requires_grad_()
        penalty = 0.5 * (expected - x).square().sum()
        value = gamma * F.cross_entropy(model(expected), y, reduction="sum") - penalty
        (gradient,) = torch.autograd.grad(value, expected)
        expected = (expected.detach() + gradient / (step + 1) ** 0.5).clamp(0, 1)
    assert_close(methods.wrm(model, x, y, gamma=gamma, steps=4), expected)


def test_report_geometry_is_the_report_s_algorithm():
    """Algorithm 1 written down in normalized space; a start of N(0, 0) makes it comparable."""
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(30)
    normalize, network = model[0], model[1:]
    epsilon, step = 8 / 255, 2 / 255
    clean = normalize(x)
    expected = clean.clone()
    for _ in range(4):
        expected.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(expected), y, reduction="sum"), expected)
        expected = expected.detach() + step * gradient.sign()
        expected = torch.min(torch.max(clean - epsilon, expected), clean + epsilon).clamp(-2, 2)
    attack = functools.partial(methods.pgd, model, x, y, ball=Linf(epsilon), step_size=step, steps=4, report_exact=True)
    assert_close(normalize(attack(random_start=False)), expected, rtol=1e-4, atol=1e-5)
    start = functools.partial(methods.pgd, model, x, y, ball=Linf(epsilon), step_size=step, steps=0, report_exact=True)
    drawn = (normalize(start()) - clean) / epsilon
    assert abs(drawn.std().item() - 1) < 0.1, "the start is normal, not uniform"
    assert drawn.abs().max() > 2
    pixels = (attack() - x).abs().amax()
    assert pixels <= epsilon * normalize.std.max() + 2e-2, "the report's 8/255 is 8/255 of a standard deviation"


class Watched(nn.Module):
    """BatchNorm, dropout, mixed modes, a frozen parameter, gradients that belong to somebody else."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head, self.fail_at, self.calls = nn.Linear(4, 10), fail_at, 0
        self.head.bias.requires_grad_(False)
        self.head.weight.grad = torch.full_like(self.head.weight, 7.0)
        self.train()
        self.features[3].eval()

    def forward(self, x):
        self.calls += 1
        assert not any(module.training for module in self.modules())
        if self.calls == self.fail_at:
            raise RuntimeError("out of luck")
        return self.head(self.features(x + 0.01 * torch.randn_like(x)).mean((2, 3)))


def state(model, *tensors):
    return {
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "needs": [p.requires_grad for p in model.parameters()],
        "weights": [t.clone() for t in model.state_dict().values()],
        "modes": [m.training for m in model.modules()],
        "rng": torch.get_rng_state(),
        "inputs": [t.clone() for t in tensors],
        "flags": [t.requires_grad for t in tensors],
        "grad_mode": torch.is_grad_enabled(),
    }


@every_attack
@pytest.mark.parametrize("fail_at", [None, 1, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_runs_in_eval_mode_and_leaves_no_trace(name, fail_at, grad):
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    model = Watched(fail_at if name != "fgsm" else fail_at and 1)
    attack = methods.named(name, **SETTINGS[name])
    with torch.set_grad_enabled(grad):
        before = state(model, x, y)
        if fail_at is None:
            found = attack(model, x, y)
            assert not found.requires_grad
            assert found.data_ptr() != x.data_ptr()
        else:
            with pytest.raises(RuntimeError, match="out of luck"):
                attack(model, x, y)
        assert_close(state(model, x, y), before, rtol=0, atol=0)


@every_attack
def test_works_under_autocast_and_keeps_memory_format(name):
    model = catalog.build("SmallCNN", ImageSpec()).to(memory_format=torch.channels_last)
    x = torch.rand(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = methods.named(name, **SETTINGS[name])(model, x, torch.arange(4))
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_inside_training_leaves_weight_gradients_whole():
    """The objective of adversarial training: attack, then a loss whose gradient must not notice the attack."""
    model, (x, y) = robust_networks.untrained().train(), robust_networks.images(16)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = methods.pgd(model, x, y, ball=Linf(0.1), step_size=0.05, steps=2)
            attacked = torch.autograd.grad(F.cross_entropy(model(found), y), list(model.parameters()))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            alone = torch.autograd.grad(F.cross_entropy(model(found), y), list(model.parameters()))
        assert_close(attacked, alone, rtol=0, atol=0)
    assert model.training


@every_attack
def test_empty_batch_gives_an_empty_batch(name):
    model = Watched(fail_at=1)
    x, y = torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.int64)
    assert methods.named(name, **SETTINGS[name])(model, x, y).shape == x.shape
    assert model.calls == 0


GOOD = torch.rand(2, 1, 8, 8), torch.tensor([0, 9])
BAD_INPUT = {
    "normalized": ((GOOD[0] * 4 - 2, GOOD[1]), r"expected x in \[0, 1\], got .*normalization belongs inside the model"),
    "nan": ((torch.full((2, 1, 8, 8), torch.nan), GOOD[1]), "x holds NaN"),
    "one image": ((GOOD[0][0], GOOD[1]), r"expected x \(B, C, H, W\) float32, got \(1, 8, 8\)"),
    "uint8": ((GOOD[0].byte(), GOOD[1]), "data.to_pixels"),
    "labels missing": ((GOOD[0], GOOD[1][:1]), r"expected y \(2,\) int64, one label per image, got \(1,\)"),
    "labels float": ((GOOD[0], GOOD[1].float()), "expected y .* int64"),
    "label too large": ((GOOD[0], torch.tensor([0, 10])), r"expected labels y in 0\.\.9, got 10"),
    "label negative": ((GOOD[0], torch.tensor([0, -1])), "expected labels y >= 0, got -1"),
}


@every_attack
@pytest.mark.parametrize(("images", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_images_and_labels(name, images, message):
    model = robust_networks.untrained()
    with pytest.raises(ValueError, match=message):
        methods.named(name, **SETTINGS[name])(model, *images)


def after(function):
    """A network whose logits pass a function."""
    return robust_networks.Defended(lambda network, x: function(network(x)))


def pgd(model=None, **settings):
    return methods.pgd(model or robust_networks.untrained(), *GOOD, **SETTINGS["pgd"] | settings)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pgd(steps=-1), "expected steps >= 0, got -1"),
        (lambda: pgd(step_size=-0.1), "expected step_size >= 0, got -0.1"),
        (lambda: pgd(step_size=float("nan")), "expected step_size >= 0, got nan"),
        (lambda: pgd(restarts=0), "expected restarts >= 1, got 0"),
        (lambda: pgd(eot_samples=0), "expected eot_samples >= 1, got 0"),
        (lambda: pgd(loss="margins"), "unknown attack loss 'margins' .did you mean 'margin'"),
        (lambda: pgd(after(lambda logits: logits * torch.nan)), "expected finite logits"),
        (lambda: pgd(after(torch.flatten)), r"expected logits \(2, K\) from the model, got \(20,\)"),
        (lambda: pgd(linear(10)[0], report_exact=True), "needs an L-infinity ball and a network that normalizes"),
        (lambda: methods.wrm(robust_networks.untrained(), *GOOD, gamma=-1.0, steps=1), "expected gamma >= 0"),
        (lambda: methods.named("pdg"), "unknown attack 'pdg' .did you mean 'pgd'"),
    ],
)
def test_faulty_settings_and_models_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda logits: logits.softmax(1), "the model returns probabilities"),
        (torch.round, "gradient of the loss is exactly zero for every image"),
        (torch.detach, "gradient of the loss is exactly zero for every image"),
    ],
)
def test_models_that_hide_their_gradient_are_warned_of(function, words):
    with pytest.warns(UserWarning, match=words):
        found = pgd(after(function))
    assert Linf(0.1).contains(found - GOOD[0]).all()


def test_noisy_fgsm_may_leave_the_ball_by_twice_its_radius_but_stays_an_image():
    model, x, y = linear(2)
    ball = Linf(0.05)
    moved = (methods.noisy_fgsm(model, x, y, ball=ball) - x).abs()
    assert 0.1 < moved.max() <= 0.15 + 1e-9
    assert losses(model, methods.noisy_fgsm(model, x, y, ball=ball), y).mean() > losses(model, x, y).mean()
    model, (x, y) = robust_networks.trained(adversarial=False), robust_networks.images(20)
    found = methods.noisy_fgsm(model, x, y, ball=Linf(0.3))
    assert found.aminmax() == (0, 1)
    assert torch.equal(found, methods.noisy_fgsm(model, x, y, ball=Linf(0.3)))
    with pytest.raises(ValueError, match="expected an L-infinity ball for noisy_fgsm"):
        methods.noisy_fgsm(model, x, y, ball=L2(0.3))
