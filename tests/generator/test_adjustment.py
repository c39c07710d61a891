from functools import partial

import pytest
import torch
from torch import Tensor, nn

from rqlib import attacks, data, generator, measures
from rqlib.core import runtime
from rqlib.core.projections import Linf
from rqlib.generator import adjustment
from tests import generated

ATTACK = partial(attacks.pgd, ball=Linf(8 / 255), step_size=4 / 255, steps=2, active_set=True)


def harmless(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x.clone()


def black(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(x)


def adjust(built, attack=ATTACK, **options):
    defaults = {"rounds": 3, "images": 50, "batch_size": 16}
    return adjustment.adjust(built, generated.teacher(), attack=attack, **defaults | options)


@pytest.mark.parametrize(
    ("clean", "robust", "number", "expected"),
    [
        (0, -1.1, 0, "adversarial"),
        (-9, -1.1, 0, "adversarial"),
        (-3.1, 0, 0, "single"),
        (-3.1, 50, 0, "single"),
        (-3, 1.1, 0, "superposed"),
        (-3, 1, 0, "stop"),
        (50, -1, 0, "stop"),
        (-3.1, 1.5, 300, "stop"),
        (0, -2.1, 300, "adversarial"),
        (-5.1, 3, 600, "single"),
    ],
)
def test_the_rule(clean, robust, number, expected):
    assert adjustment.choose({"clean_difference": clean, "robust_difference": robust}, number) == expected


def test_every_round_is_logged_with_its_differences():
    rows = adjust(generated.trained(), target=(0.9, 0.3))
    assert list(rows["round"]) == list(range(len(rows)))
    assert ((rows.clean - 0.9) * 100).tolist() == pytest.approx(rows.clean_difference.tolist())
    assert ((rows.robust - 0.3) * 100).tolist() == pytest.approx(rows.robust_difference.tolist())
    assert rows.action.iloc[-1] == "stop"
    assert rows.loss.notna().sum() == len(rows) - 1


def test_it_stops_where_the_target_is_met():
    built = generated.trained()
    fresh = generator.sample(built, 50, seed=runtime.rng(0, 0).initial_seed())
    met = adjustment.target(generated.teacher(), fresh, harmless)
    assert met.clean == met.robust == measures.accuracy(generated.teacher(), *fresh)
    rows = adjust(built, harmless, target=met)
    assert rows.action.tolist() == ["stop"]
    assert rows.clean_difference[0] == rows.robust_difference[0] == 0
    assert generated.same(built, generated.trained())


def test_superposed_steps_lower_the_robustness_of_the_images():
    rows = adjust(generated.trained(), rounds=4, steps=6, images=100, lr=3e-3)
    assert "superposed" in set(rows.action)
    assert rows.robust.iloc[-1] < rows.robust.iloc[0]
    assert list(rows["round"]) == list(range(len(rows)))
    assert rows.clean_difference.tolist() == pytest.approx([100 * (clean - 1) for clean in rows.clean])
    assert rows.robust_difference.tolist() == pytest.approx([100 * robust for robust in rows.robust])
    assert rows.action.iloc[-1] == "stop"
    assert rows.loss.notna().sum() == len(rows) - 1


def test_attacked_copies_where_images_are_too_weak():
    rows = adjust(generated.trained(), black, target=(1.0, 0.9), rounds=1)
    assert rows.action[0] == "adversarial"
    assert rows.loss[0] > rows.cross_entropy[0] + 0.1 * rows.batchnorm_distance[0] + 0.5


def test_an_interrupted_adjustment_ends_with_the_same_weights(tmp_path):
    whole, broken, path = generated.trained(), generated.trained(), tmp_path / "adjust.pt"
    expected, calls = adjust(whole), []

    def failing(model, x, y):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return ATTACK(model, x, y)

    with pytest.raises(KeyboardInterrupt):
        adjust(broken, failing, checkpoint=path)
    resumed = generated.trained()
    rows = adjust(resumed, failing, checkpoint=path)
    assert rows.equals(expected)
    assert generated.same(resumed, whole)
    assert adjust(generated.trained(), failing, checkpoint=path).equals(expected), "a finished one is only read"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": (95.0, 20.0)}, "divide percent by 100"),
        ({"attack": black}, "belongs to another training: attack"),
    ],
)
def test_errors(tmp_path, options, words):
    settings = {"rounds": 0, "checkpoint": tmp_path / "adjust.pt"}
    adjust(generated.trained(), **settings)
    with pytest.raises(ValueError, match=words):
        adjust(generated.trained(), **settings | options)


def test_copies_are_adjusted_without_and_with_a_target(tmp_path):
    real, trained = data.load("digits").validation.take(50), generated.trained()
    settings = {"attack": ATTACK, "rounds": 1, "images": 50, "batch_size": 16, "folder": tmp_path}
    found = adjustment.adjust_all(trained, generated.teacher(), real, **settings)
    assert found.generators["trained"] is trained
    assert {path.name for path in tmp_path.iterdir()} == {"adjusted.pt", "targeted.pt"}
    clean, robust = (measures.accuracy(generated.teacher(), *real, attack=attack) for attack in (None, ATTACK))
    assert found.targets == {"adjusted": None, "targeted": (clean, robust)}
    for name, target in found.targets.items():
        alone = generated.trained()
        rows = adjust(alone, target=target, rounds=1)
        assert found.rounds.loc[found.rounds.generator == name, "clean"].tolist() == rows.clean.tolist()
        assert generated.same(found.generators[name], alone)
