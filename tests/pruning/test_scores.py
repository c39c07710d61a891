"""Scores start at the choice of magnitude, and only they are trained."""

import pytest
import torch
from torch.testing import assert_close

from rqlib import models
from rqlib.core.parametrizations import steps_of
from rqlib.pruning import masks, scores
from rqlib.pruning.parametrizations import Scored
from tests.networks import IMAGE, narrow

STRUCTURED = [
    (name, structure)
    for name in ("SmallCNN", "ResNet_18", "MobileNetV2", "Inception_BN")
    for structure in ("columns", "2:4", "filters")
]


@pytest.mark.parametrize(("name", "structure"), [*((name, "weights") for name in models.MODELS), *STRUCTURED])
def test_at_the_start_the_masks_are_those_of_magnitude(name, structure):
    model = narrow(name)
    expected = masks.magnitude_masks(model, 0.5, structure=structure, image=IMAGE)
    scored = steps_of(scores.with_scores(model, 0.5, structure=structure, image=IMAGE), Scored)
    assert scored.keys() == expected.keys()
    assert all(torch.equal(scored[name].mask(), mask) for name, mask in expected.items())


def test_scaled_initialization_and_what_is_trained():
    model = narrow("SmallCNN")
    scored = scores.with_scores(model, 0.1)
    step = steps_of(scored, Scored)["features.0.conv.weight"]
    weight = model.features[0].conv.weight
    assert_close(step.scores, (6 / weight[0].numel()) ** 0.5 * weight / weight.abs().max())
    trained = {name for name, parameter in scored.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in scored.named_parameters() if name.endswith("scores")}
    along = scores.with_scores(model, 0.1, norms=True)
    assert along.features[0].norm.weight.requires_grad
    assert not along.features[0].conv.bias.requires_grad
