"""The cascade of wrong, attacked and certified images: agrees with each bound alone, goes on, refuses bad input."""

import dataclasses
import re

import numpy
import pandas
import pytest
import torch
from torch import Tensor, nn

from rqlib import attacks, certification, defenses
from rqlib.certification import cascade, figures, programs
from rqlib.certification.bounds import certified
from rqlib.core.projections import Linf
from rqlib.core.resumable import BelongsToAnotherError
from tests.networks import COLOR, narrow

EPSILON = 0.004


def network() -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images, and labels of which one in five is wrong."""
    model = narrow("CNN_small")
    images = torch.rand(20, *COLOR.shape, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    return model, images, labels


def test_every_image_is_decided_by_the_cheapest_bound():
    model, images, labels = network()
    table = certification.certify(model, images, labels, epsilon=EPSILON)
    attack = attacks.named("pgd", ball=Linf(EPSILON), **attacks.pace(Linf(EPSILON), 50), active_set=True)
    wrong = model(images).argmax(1) != labels
    fooled = model(attack(model, images, labels)).argmax(1) != labels
    bounds = {"IBP": certification.ibp, "CROWN-IBP": certification.crown_ibp, "CROWN": certification.crown}
    sure = {name: certified(model, images, of(model, images, labels, epsilon=EPSILON)) for name, of in bounds.items()}
    assert not (sure["CROWN"] & fooled).any()
    for row, image in zip(table.itertuples(), range(20), strict=True):
        reasons = {"clean": wrong, "PGD": fooled & ~wrong} | sure
        first = next((name for name, holds in reasons.items() if holds[image]), None)
        assert row.decided_by == first or (pandas.isna(row.decided_by) and first is None)
    assert {"wrong", "certified"} <= set(table.outcome) <= set(cascade.OUTCOMES)
    assert (table.seconds > 0).all()


def test_the_ladder_has_no_step_up():
    model, images, labels = network()
    table = certification.ladder(model, images, labels, [0.0, 0.001, 0.003, 0.01])
    rungs = table[list(cascade.LADDER)].to_numpy()
    assert (numpy.diff(rungs, axis=1) <= 0).all()
    assert (numpy.diff(rungs, axis=0) <= 0).all()
    assert (rungs[0] == 0.8).all()
    assert table.CROWN[2] > table.IBP[2]


def test_an_interrupted_cascade_goes_on(tmp_path, monkeypatch):
    model, images, labels = network()
    path, options = tmp_path / "cascade.pt", {"epsilon": EPSILON, "batch_size": 8}
    whole = certification.certify(model, images, labels, **options)
    decide, batches = cascade._decided, []

    def dying(*args):
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return decide(*args)

    monkeypatch.setattr(cascade, "_decided", dying)
    with pytest.raises(KeyboardInterrupt):
        certification.certify(model, images, labels, **options, checkpoint=path)
    assert len(torch.load(path)["rows"]) == 8
    found = certification.certify(model, images, labels, **options, checkpoint=path)
    assert len(batches) == 4
    assert found.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    with pytest.raises(BelongsToAnotherError, match=r"another cascade: attack .*epsilon 0.004 instead of 0.005"):
        certification.certify(model, images, labels, epsilon=0.005, checkpoint=path)


def test_where_lines_are_not_known_boxes_certify_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    images = torch.rand(6, 3, 2, 2)
    with pytest.warns(UserWarning, match=r"no linear bounds are known for _2: images are certified by boxes \(IBP\)"):
        table = certification.certify(model, images, model(images).argmax(1), epsilon=1e-4)
    assert set(table.decided_by) == {"IBP"}


def test_figures_show_every_row():
    ladder = pandas.DataFrame({"epsilon_255": [2.0, 1.0], **{name: [0.5, 0.75] for name in cascade.LADDER}})
    figure = figures.accuracy_ladder(ladder)
    assert [line.name for line in figure.data] == [
        *("clean images", "under PGD", "CROWN certifies", "CROWN-IBP certifies", "IBP certifies")
    ]
    assert list(figure.data[0].x) == [1.0, 2.0]
    smoothed = pandas.DataFrame({"label": [0, 1, 2], "predicted": [0, 1, -1], "radius_l2": [0.5, 0.2, 0.0]})
    (line,) = figures.smoothed_accuracy({"noise": smoothed}).data
    assert list(line.x) == [0, 0.2, 0.5, 0.5]
    assert list(line.y) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0])


def _certify(model: nn.Module, epsilon: float = 0.01, count: int = 1) -> None:
    certification.certify(model, torch.rand(1, *COLOR.shape), torch.zeros(count, dtype=torch.int64), epsilon=epsilon)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: _certify(narrow("LeNet"), -0.1), "in [0, 1], in pixels, got -0.1"),
        (lambda: _certify(narrow("LeNet"), 2), "in [0, 1], in pixels, got 2"),
        (lambda: _certify(narrow("LeNet"), count=2), "expected one label per image, got 1 images and 2 labels"),
        (lambda: _certify(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Softmax(1))), "no bounds are known for Softmax (_1)"),
        (lambda: _certify(nn.Sequential(nn.Flatten(), nn.Linear(3072, 1))), "logits of at least 2 classes, got 1"),
        (lambda: _certify(defenses.add_noise(narrow("LeNet"), 0.1)), "randomized smoothing certifies it"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


class Shuffled(nn.Module):
    """Asks for its batch size, in two ways, to shuffle channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, 2), nn.Linear(4 * 15 * 15, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        count, channels, height, width = x.size()
        x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.linear(x.view(x.shape[0], -1))


def test_a_network_may_ask_for_its_batch_size():
    model, images = Shuffled().eval(), torch.rand(7, *COLOR.shape, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    table = certification.certify(model, images, labels, epsilon=1e-5)
    assert (table.outcome == "certified").all()


def test_a_program_that_is_not_the_network_is_refused():
    model = narrow("CNN_small")
    steps = programs.program(model, COLOR.shape)
    images = torch.rand(2, *COLOR.shape)
    programs._check(steps, model, images)
    with pytest.raises(programs.NoBounds, match="reading its steps from one image changes what"):
        programs._check(steps, nn.Sequential(model, nn.Linear(10, 10)), images)
    wrong = [
        dataclasses.replace(step, apply=lambda x: x.view(1, -1)) if step.kind == "reshape" else step for step in steps
    ]
    with pytest.raises(programs.NoBounds, match="invalid for input of size|shapes cannot be multiplied"):
        programs._check(wrong, model, images)
