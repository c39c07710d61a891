"""Objectives on bounds and under noise: limits that are known, gradients, the ramp, initialization, going on."""

import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import certification, data, models, training
from rqlib.certification import boxes, live
from rqlib.core.vocabulary import ImageSpec
from rqlib.training import certified_objectives as objectives
from rqlib.training.certified_objectives import CERTIFIED, Certified, smoothed_ramp
from rqlib.training.noisy_objectives import NOISY

SMALL = ImageSpec(1, 12, 12, 4, mean=(0.5,), std=(0.25,))
NAMES = (*CERTIFIED, *NOISY)


def small(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)]
    if norm:
        layers[1:1] = [nn.BatchNorm2d(4)]
    return nn.Sequential(*layers)


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(count, *SMALL.shape, generator=rng), torch.randint(4, (count,), generator=rng)


def made(name: str, **settings):
    if name in NOISY:
        return lambda model, x, y: NOISY[name](model, x, y, **settings)
    return CERTIFIED[name](epsilon=0.05, **settings)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bound", ["ibp", "crown_ibp"])
def test_a_ball_of_radius_zero_is_the_image(norm, bound):
    """Bounds become the logits, and their gradients those of the cross-entropy, BatchNorm in train mode included."""
    model, (x, y) = small(norm=norm).train(), batch()
    objective = Certified(0.05, bound=bound, shi=False)
    share = 0.0 if bound == "crown_ibp" else 1.0
    monitored = objective._loss(model, x, y, 0.0, share)
    exact = F.cross_entropy(model(x), y)
    assert monitored.item() == pytest.approx(exact.item(), abs=1e-5)
    for one, other in zip(gradients(model, monitored), gradients(model, exact), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_live_bounds_are_those_of_the_evaluated_network():
    model, (x, y) = small(norm=True).eval(), batch()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    steps = live.of(model, x).steps
    found = boxes.margins(steps, boxes.propagate(steps, boxes.of_images(x, 0.05)), y)
    assert torch.allclose(found, certification.ibp(model, x, y, epsilon=0.05), atol=1e-5)


def test_bounds_in_train_mode_hold_for_the_statistics_of_the_clean_images():
    model, (x, _) = small(norm=True).train(), batch()
    network = live.of(model, x)
    network.logits(model, x)
    found = boxes.propagate(network.steps, boxes.of_images(x, 0.05))[-1]
    mean, variance = network.statistics[model[1]]
    fixed = small(norm=True).eval()
    fixed[1].running_mean, fixed[1].running_var = mean.detach(), variance.detach()
    for _ in range(50):
        logits = fixed(x + 0.05 * (2 * torch.rand_like(x) - 1))
        assert (found.low - 1e-5 <= logits).all()
        assert (logits <= found.high + 1e-5).all()


def test_live_steps_follow_the_network():
    model, (x, _) = small(), batch()
    first = live.of(model, x)
    assert live.of(model, x) is first
    model[1] = nn.Hardtanh()
    assert live.of(model, x) is not first


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(name):
    model, (x, y) = small(), batch(32)
    objective = made(name, **({"chance": 1.0} if name == "mixtrain" else {}))
    if name in CERTIFIED:
        objective.begin_epoch(model, 6, 10)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.003), []
    for _ in range(20):
        loss = objective(model.train(), x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_ramp_is_smooth():
    assert [smoothed_ramp(t, 2, 10) for t in (0, 2, 10, 12)] == [0, 0, 1, 1]
    before, at, behind = (smoothed_ramp(t, 2, 10) for t in (4 - 1e-4, 4, 4 + 1e-4))
    assert at == pytest.approx(0.25**4 / 0.05078125)
    assert behind - at == pytest.approx(at - before, rel=1e-3)
    values = [smoothed_ramp(2 + t / 10, 2, 10) for t in range(81)]
    assert values == sorted(values)


def test_the_radius_depends_on_epoch_and_step_alone(monkeypatch):
    objective, model, (x, y) = Certified(0.1, ramp=(0.0, 0.5)), small(), batch()
    radii = []
    monkeypatch.setattr(Certified, "_loss", lambda self, model, x, y, radius, share: radii.append(radius))
    for epoch in (0, 1, 2, 3, 1):
        objective.begin_epoch(model, epoch, 4, 2)
        for _ in range(2):
            objective(model, x, y)
    expected = [0.11 * smoothed_ramp(t / 2, 0, 2) for t in range(1, 8)]  # at 0 it is the plain cross-entropy
    assert radii == pytest.approx(expected + expected[1:3])


def test_without_a_schedule_the_radius_is_full(monkeypatch):
    radii = []
    monkeypatch.setattr(Certified, "_loss", lambda self, model, x, y, radius, share: radii.append(radius))
    objective = Certified(0.1, ramp=None)
    objective(small(), *batch())
    objective.begin_epoch(small(), 0, 10)
    objective(small(), *batch())
    assert radii == pytest.approx([0.11, 0.11])


def test_initial_weights_keep_boxes_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), *(part for _ in range(6) for part in (nn.Linear(144, 144), nn.ReLU())))
    model.append(nn.Linear(144, 4))
    last = model[-1].weight.clone()
    x = torch.rand(16, *SMALL.shape)

    def growth() -> float:
        steps = live.of(model, x).steps
        found = boxes.propagate(steps, boxes.of_images(x, 0.01))
        return ((found[-2].high - found[-2].low).mean() / (found[0].high - found[0].low).mean()).item()

    before = growth()
    objectives.initialize(model)
    assert model[1].weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / 144, rel=0.02)
    assert torch.equal(model[-1].weight, last)
    assert growth() == pytest.approx(1, abs=0.5)
    assert before > 10


def test_layers_behind_a_sum_start_smaller():
    model = models.build("ResNet_18", SMALL, width=0.25)
    objectives.initialize(model)
    scaled = {
        name: layer.weight.std().item() * layer.weight[0].numel() / math.sqrt(2 * math.pi)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 1000
    }
    groups = {round(2 * value) / 2 for value in scaled.values()}
    assert groups == {0.5, 1.0}


def test_the_regularizer_asks_for_balance():
    steps = live.of(model := small(), x := batch()[0]).steps
    found = boxes.propagate(steps, boxes.of_images(x, 0.01))
    model[0].bias.data += 100  # every unit of the first layer is on
    unbalanced = boxes.propagate(steps, boxes.of_images(x, 0.01))
    model[0].bias.data -= 100
    model[0].weight.data *= 100  # its boxes grow
    grown = boxes.propagate(steps, boxes.of_images(x, 0.01))
    plain, other, wide = (objectives.regularizer(steps, boxes).item() for boxes in (found, unbalanced, grown))
    assert math.isfinite(other)
    assert wide > plain


@pytest.mark.parametrize("name", ["ibp", "crown_ibp", "mixtrain", "sabr"])
def test_an_interrupted_training_goes_on(tmp_path, name):
    digits = data.load("digits", channels=1).take(train=256, validation=0)
    recipe = dataclasses.replace(training.recipe("quick"), epochs=3, lr=0.01, augment=False)

    def train(checkpoint=None, after_epoch=None) -> nn.Module:
        model = models.build("CNN_small", digits.spec, width=0.25, seed=0)
        objective = CERTIFIED[name](epsilon=0.02)
        options = {"checkpoint": checkpoint, "after_epoch": after_epoch, "keep": "last"}
        training.fit(model, digits, objective, recipe, **options)
        return model

    def die(model: nn.Module, history: list[dict]) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "training.pt", die)
    resumed, whole = train(tmp_path / "training.pt").state_dict(), train().state_dict()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Certified(1.5), "expected epsilon in [0, 1], got 1.5"),
        (lambda: Certified(0.1, part=-1), "expected part in [0, 1], got -1"),
        (lambda: Certified(0.1, bound="crown"), "expected bound ibp | crown_ibp, got 'crown'"),
        (lambda: Certified(0.1, ramp=(2, 80)), "expected ramp (begin, end) as fractions of the training, or None"),
        (lambda: objectives.MixTrain(-0.1), "expected epsilon in [0, 1], got -0.1"),
        (lambda: Certified(0.1)(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softmax(1)), *batch()), "no bounds are known for"),
        (lambda: objectives.initialize(_parametrized()), "those of 0 are parametrized: initialize first"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def _parametrized() -> nn.Module:
    model = small()
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    return model


def test_networks_of_different_seeds_stay_different():
    """The random weights that boxes want depend on those that the network has; the same ones give the same."""
    made = [models.build("CNN_small", ImageSpec(), seed=seed) for seed in (0, 0, 1)]
    for model in made:
        objectives.initialize(model)
    one, again, other = (torch.cat([p.flatten() for p in model.parameters() if p.dim() > 1][:-1]) for model in made)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    penalized = training.penalized(CERTIFIED["ibp"](epsilon=0.1), lambda model: 0.0, 1.0)
    model = models.build("CNN_small", ImageSpec(), seed=0)
    training.initialize(model, penalized)
    assert torch.equal(model.state_dict()[next(iter(model.state_dict()))], next(iter(made[0].state_dict().values())))


def test_at_the_full_radius_nothing_grows(monkeypatch):
    """A trained network meets the whole ball in the first step, also by MixTrain."""
    radii, ball = [], boxes.of_images
    monkeypatch.setattr(boxes, "of_images", lambda x, radius: radii.append(radius) or ball(x, radius))
    model, (x, y) = small().train(), batch()
    for name, factor in (("mixtrain", 1.0), ("sabr", 1.1 * 0.4)):
        settings = {"chance": 1.0} if name == "mixtrain" else {}
        objective = CERTIFIED[name](epsilon=0.05, **settings).at_full_radius()
        objective.begin_epoch(model, 0, 20, 1)
        objective(model, x, y)
        assert radii.pop() == pytest.approx(0.05 * factor), name
