import copy

import pytest
import torch

from rqlib import data, generator
from rqlib.core import runtime
from rqlib.generator import mixtures
from rqlib.generator.stepping import Training, frozen, step
from tests import generated

MIXTURE = mixtures.single(torch.arange(10), 10)


def fresh(teacher=None):
    return generator.build(teacher or generated.teacher(), data.load("digits").spec, channels=8)


def test_the_attacked_copy_adds_to_the_loss():
    built = fresh()
    training = Training(built, generated.teacher(), None, 1e-3, {})
    seen, weights = [], copy.deepcopy(built.state_dict())

    def attack(model, x, y):
        seen.append((x.requires_grad, y.tolist()))
        return (x + 0.1).clamp(0, 1)

    with frozen(generated.teacher()), training.mode():
        plain = step(training, generated.teacher(), MIXTURE, runtime.rng(0))
        built.load_state_dict(weights)
        attacked = step(training, generated.teacher(), MIXTURE, runtime.rng(0), attack)
    assert seen == [(False, list(range(10)))]
    assert attacked["cross_entropy"] == pytest.approx(plain["cross_entropy"].item(), rel=1e-4)
    assert attacked["loss"] > plain["loss"]


def test_a_teacher_is_frozen_and_put_back_after_an_exception():
    teacher = copy.deepcopy(generated.teacher()).train()
    teacher.classifier.eval()
    teacher.features[0].conv.weight.requires_grad_(False)

    def modes():
        return [one.training for one in teacher.modules()], [one.requires_grad for one in teacher.parameters()]

    before = modes()
    with pytest.raises(KeyboardInterrupt), frozen(teacher):
        assert not any(module.training for module in teacher.modules())
        assert not any(one.requires_grad for one in teacher.parameters())
        raise KeyboardInterrupt
    assert modes() == before


def test_a_loss_that_is_not_finite_keeps_the_state_before(tmp_path):
    training = Training(fresh(), generated.teacher(), tmp_path / "fit.pt", 1e-3, {})
    training.add({"loss": 1.0})
    with pytest.raises(FloatingPointError, match=r"loss nan in epoch or round 2 .*fit.pt holds the state after 1"):
        training.add({"loss": float("nan")})
    assert Training(fresh(), generated.teacher(), tmp_path / "fit.pt", 1e-3, {}).rows == [{"loss": 1.0}]
