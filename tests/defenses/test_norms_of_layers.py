"""Estimates and bounds of all layers enclose the norms of the matrices that the layers are."""

import pytest
import torch

from rqlib import defenses, models
from rqlib.core import derived, layers
from rqlib.core.vocabulary import ImageSpec

SPEC = ImageSpec(height=16, width=16)


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_every_norm_lies_between_estimate_and_bound(noise_std):
    model = models.build("CNN_small", SPEC, width=0.25, seed=0).eval()
    table = defenses.layer_norms(defenses.defend(model, noise_std=noise_std), SPEC.shape)
    plain = derived.folded(model, torch.rand(2, *SPEC.shape))
    names = [name for name, _ in layers.weighted_layers(plain)]
    assert list(table.layer) == names
    for row in table.itertuples():
        layer = plain.get_submodule(row.layer)
        basis = torch.eye(torch.Size(row.input_shape).numel()).view(-1, *row.input_shape)
        with torch.no_grad():
            matrix = (layer(basis) - layer(torch.zeros_like(basis))).flatten(1)
        exact = torch.linalg.matrix_norm(matrix.double(), 2).item()
        assert row.estimate <= exact * (1 + 1e-4)
        assert exact <= row.bound * (1 + 1e-6)
        assert row.estimate > 0.9 * exact
