"""Randomized smoothing: known numbers, closed forms of linear networks, sequential sampling, going on."""

import re

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from rqlib import certification, defenses
from rqlib.certification import smoothing
from rqlib.certification.smoothing import l2_radius, probability
from rqlib.core.resumable import BelongsToAnotherError
from tests.networks import COLOR, narrow

GOLDEN = {  # (hits, draws) -> lower bound at alpha 0.001, radius at sigma 0.25
    (100, 100): (0.933254, 0.375119),
    (1_000, 1_000): (0.993116, 0.615816),
    (10_000, 10_000): (0.999309, 0.799644),
    (100_000, 100_000): (0.999931, 0.952864),
    (9_900, 10_000): (0.986531, 0.553105),
    (9_000, 10_000): (0.890410, 0.307178),
    (990, 1_000): (0.976036, 0.494502),
    (5_160, 10_000): (0.500500, 0.000313),
}


@pytest.mark.parametrize("counts", GOLDEN)
def test_known_radii(counts):
    lower, radius = GOLDEN[counts]
    found = probability(*counts, alpha=0.001)
    assert (found, l2_radius(found, 0.25)) == pytest.approx((lower, radius), abs=1e-6)


def test_radii_grow_with_sigma():
    for draws, radius in ((100, 0.180057), (1_000, 0.295592), (10_000, 0.383829)):
        assert l2_radius(probability(draws, draws, alpha=0.001), 0.12) == pytest.approx(radius, abs=1e-6)


@pytest.mark.parametrize(("fewest", "draws"), [(66, 100), (550, 1_000), (5_156, 10_000)])
def test_fewest_hits_that_certify(fewest, draws):
    assert l2_radius(probability(fewest, draws, alpha=0.001), 0.25) > 0
    assert l2_radius(probability(fewest - 1, draws, alpha=0.001), 0.25) == 0
    assert probability(0, draws, alpha=0.001) == 0


class Halfspace(nn.Module):
    """Two classes on either side of a plane: the certified radius is at most the distance to it."""

    def __init__(self, threshold: float):
        super().__init__()
        self.direction = nn.Parameter(torch.ones(12) / 12**0.5)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        side = x.flatten(1) @ self.direction - self.threshold
        return torch.stack([side, -side], 1)


def halfspace(count: int = 45, threshold: float = 1.5) -> tuple[Halfspace, Tensor, Tensor, Tensor]:
    """A network, images on both sides of its plane, their labels, and their distances to the plane."""
    images = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    model = Halfspace(threshold)
    logits = model(images).detach()
    return model, images, logits.argmax(1), logits[:, 0].abs()


def test_radii_stay_below_the_distance_to_the_plane():
    model, images, labels, distance = halfspace()
    table = certification.smooth(model, sigma=0.25).certify(images, labels, draws=2_000)
    radii = torch.tensor(table.radius_l2)
    assert (radii <= distance + 1e-6).float().mean() >= 1 - 0.02
    near = (distance > 0.05) & (distance < 0.4)
    assert near.any()
    assert (radii[near] > distance[near] - 0.1).all()
    assert set(table.predicted[table.predicted != -1] == table.label[table.predicted != -1]) == {True}
    assert set(table.precision) == {"float32"} or set(table.precision) == {"bfloat16"}


def test_an_exact_probability_is_counted():
    """The share of answers is Phi(distance / sigma); images are not clipped before the network sees them."""
    model, images, _, distance = halfspace(3)
    table = certification.smooth(model, sigma=0.5).certify(images, torch.zeros(3, dtype=torch.int64), draws=20_000)
    assert (table.hits / table.draws).tolist() == pytest.approx(norm.cdf(distance / 0.5).tolist(), abs=0.015)


def test_an_image_is_done_when_its_radius_is_decided():
    model, images, labels, distance = halfspace()
    smoothed = certification.smooth(model, sigma=0.25)
    table = smoothed.certify(images, labels, radius=0.2)
    assert set(table.draws) == {100, 1_000, 10_000}
    sure = torch.tensor((table.draws == 100).to_numpy())
    assert (distance[sure] - 0.2).abs().min() > 0.02
    whole = smoothed.certify(images, labels, radius=0.2, draws=10_000)
    unlike = torch.tensor((table.certified != whole.certified).to_numpy())
    assert ((distance[unlike] - 0.2).abs() < 0.03).all()


def test_certify_and_predict_draw_their_own():
    model, images, labels, _ = halfspace(40)
    smoothed = certification.smooth(model, sigma=0.25)
    answers, again = (smoothed.predict(images, labels, draws=200) for _ in range(2))
    assert answers.drop(columns="seconds").equals(again.drop(columns="seconds"))
    one = smoothed.certify(images, labels, draws=200)
    assert not smoothing.Smoothed(model, 0.25, 0.001, 1).certify(images, labels, draws=200).hits.equals(one.hits)
    both = (answers.predicted != -1) & (one.predicted != -1)
    assert both.any()
    assert (answers.predicted[both] == one.predicted[both]).all()


@pytest.mark.parametrize(("first", "second", "p_value", "answer"), [(66, 34, 0.001790, -1), (67, 33, 0.000874, 0)])
def test_prediction_abstains(monkeypatch, first, second, p_value, answer):
    monkeypatch.setattr(smoothing.Smoothed, "_counts", lambda *_: torch.tensor([[first, second, 0]]))
    row = certification.smooth(narrow("LeNet"), sigma=0.25).predict(torch.rand(1, *COLOR.shape), torch.tensor([0]))
    assert (row.p_value[0], row.predicted[0]) == (pytest.approx(p_value, abs=1e-6), answer)


def test_a_randomized_network_is_smoothed_with_its_own_noise():
    model = defenses.add_noise(narrow("LeNet"), 0.1, members=2)
    images, labels = torch.rand(2, *COLOR.shape), torch.tensor([0, 1])
    smoothed = certification.smooth(model, sigma=0.1)
    one, two = (smoothed.certify(images, labels, draws=50).drop(columns="seconds") for _ in range(2))
    assert one.equals(two)


def test_an_interrupted_computation_goes_on(tmp_path, monkeypatch):
    model, images, labels, _ = halfspace(95)
    smoothed, path = certification.smooth(model, sigma=0.25), tmp_path / "smoothing.pt"
    whole = smoothed.certify(images, labels, radius=0.1, draws=(50, 200))
    count, groups = smoothing.Smoothed._certified, []

    def dying(self, *args):
        groups.append(1)
        if len(groups) == 2:
            raise KeyboardInterrupt
        return count(self, *args)

    monkeypatch.setattr(smoothing.Smoothed, "_certified", dying)
    for _ in range(2):
        try:
            found = smoothed.certify(images, labels, radius=0.1, draws=(50, 200), checkpoint=path)
        except KeyboardInterrupt:
            assert len(torch.load(path)["rows"]) == 40
    assert len(groups) == 4  # one, the one that died, and the two that were left
    assert found.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    with pytest.raises(BelongsToAnotherError, match=r"another smoothing: radius 0.1 instead of 0.2"):
        smoothed.certify(images, labels, radius=0.2, draws=(50, 200), checkpoint=path)


def _certify(**options):
    model, images, labels, _ = halfspace(2)
    return certification.smooth(model, sigma=0.25).certify(images, labels, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: certification.smooth(narrow("LeNet"), sigma=0), "expected sigma > 0, in pixels of [0, 1], got 0"),
        (lambda: certification.smooth(narrow("LeNet"), sigma=0.1, alpha=1), "expected alpha between 0 and 1, got 1"),
        (
            lambda: _certify(draws=100, radius=0.4347),
            "at most 0.3751, and 0.4347 is asked for: take at least 165 draws",
        ),
        (lambda: _certify(draws=(100, 100)), "expected increasing numbers of draws"),
        (
            lambda: certification.smooth(narrow("LeNet"), sigma=1).predict(torch.rand(2, 3, 32, 32), torch.zeros(1)),
            "expected one label per image, got 2 images and 1 labels",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
