"""Each seed is trained as `fit` alone would train it, and an interrupted series goes on."""

import pytest
import torch

from rqlib import data, models
from rqlib.training import loop, objectives, recipes, several_seeds

RECIPE = recipes.Recipe(2, batch_size=64, lr=0.05)


def make(seed: int) -> torch.nn.Module:
    return models.build("SmallCNN", data.load("digits").spec, seed=seed)


def test_each_seed_is_trained_as_alone_and_goes_on(tmp_path):
    images = data.load("digits").take(train=128, validation=64)
    options = {"keep": lambda name: tmp_path / name}
    series = several_seeds.each_seed(make, images, objectives.natural, RECIPE, [3, 5], **options)
    assert next(series)[0] == 3
    series.close()
    calls = []

    def counted(model, x, y):
        calls.append(len(y))
        return objectives.natural(model, x, y)

    found = {
        seed: (net, log) for seed, net, log in several_seeds.each_seed(make, images, counted, RECIPE, [3, 5], **options)
    }
    assert list(found) == [3, 5]
    assert len(calls) == 2 * 2  # the first seed was trained before
    alone = make(5)
    history = loop.fit(alone, images, objectives.natural, RECIPE, seed=5)
    assert history.loss.tolist() == found[5][1].loss.tolist()
    pairs = zip(alone.parameters(), found[5][0].parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    with pytest.raises(StopIteration):
        next(several_seeds.each_seed(make, images, counted, RECIPE, []))
