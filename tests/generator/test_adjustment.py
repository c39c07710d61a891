import copy
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


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


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
    before = copy.deepcopy(built.state_dict())
    fresh = generator.sample(built, 50, seed=runtime.rng(0, 0).initial_seed())
    met = adjustment.target(generated.teacher(), fresh, harmless)
    assert met.clean == met.robust == measures.accuracy(generated.teacher(), *fresh)
    rows = adjust(built, harmless, target=met)
    assert rows.action.tolist() == ["stop"]
    assert rows.clean_difference[0] == rows.robust_difference[0] == 0
    assert all(torch.equal(before[name], value) for name, value in built.state_dict().items())


def test_superposed_steps_lower_the_robustness_of_the_images():
    rows = adjust(generated.trained(), rounds=6, steps=6, images=200, lr=3e-3)
    assert "superposed" in set(rows.action)
    assert rows.robust.iloc[-1] < rows.robust.iloc[0]


def test_without_a_target_images_shall_be_classified_as_asked_and_withstand_nothing():
    rows = adjust(generated.trained(), harmless, rounds=1)
    assert rows.robust_difference[0] == pytest.approx(100 * rows.clean[0])
    assert rows.clean_difference[0] == pytest.approx(100 * (rows.clean[0] - 1))
    assert rows.action[0] in ("superposed", "single")


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
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert adjust(generated.trained(), failing, checkpoint=path).equals(expected)
    with pytest.raises(ValueError, match="belongs to another training"):
        adjust(generated.trained(), checkpoint=path)


def test_a_target_of_percent_is_refused():
    with pytest.raises(ValueError, match="divide percent by 100"):
        adjust(generated.trained(), target=(95.0, 20.0))


def test_the_target_is_measured_on_images():
    split = data.Split(*(part[:50] for part in data.load("digits").validation))
    clean, robust = adjustment.target(generated.teacher(), split, ATTACK)
    assert clean == measures.accuracy(generated.teacher(), *split)
    assert robust == measures.accuracy(generated.teacher(), *split, attack=ATTACK)
