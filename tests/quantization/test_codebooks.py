"""Levels that are fitted to values by k-means."""

import pytest
import torch
from torch.testing import assert_close

from rqlib.quantization import INT, codebooks


def quantization_error(x, levels):
    return (x[:, None].double() - levels.double()).abs().amin(1).square().mean()


def test_codebook_is_a_fixed_point_with_a_pinned_zero():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    levels = codebooks.codebook(x, 4, iterations=10_000)
    assert len(levels) == 16
    assert (levels == 0).sum() == 1
    nearest = (x[:, None] - levels).abs().argmin(1)
    means = torch.stack([x[nearest == index].mean() for index in range(16)])
    assert_close(means[levels != 0], levels[levels != 0], rtol=1e-4, atol=1e-4)
    scale = x.abs().max() / INT(4).max
    assert quantization_error(x, levels) < quantization_error(x, INT(4).levels * scale) / 2
    assert torch.equal(levels, codebooks.codebook(x.flip(0).reshape(100, 200), 4, iterations=10_000))


def test_codebook_of_few_values_is_those_values():
    x = torch.tensor([1.0, 5.0, 1.0, -2.0])
    assert codebooks.codebook(x, 3).tolist() == [-2.0, 0.0, 1.0, 5.0]
    assert codebooks.codebook(torch.zeros(5), 2).tolist() == [0.0]


def test_codebook_moves_empty_clusters_to_far_values():
    x = torch.cat([torch.ones(1000), torch.ones(1000) * 1.0001, torch.tensor([50.0, -70.0, 90.0])])
    levels = codebooks.codebook(x, 3)
    assert quantization_error(x, levels) < 1e-8


@pytest.mark.parametrize(
    ("values", "bits", "words"),
    [
        (torch.tensor([1.0, torch.nan]), 2, "expected finite values"),
        (torch.tensor([torch.inf, 1.0]), 2, "expected finite values"),
        (torch.empty(0), 2, "expected finite values"),
        (torch.ones(3), 0, r"bits must be 1\.\.16"),
    ],
)
def test_errors(values, bits, words):
    with pytest.raises(ValueError, match=words):
        codebooks.codebook(values, bits)
