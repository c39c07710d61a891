"""How good generated images are: classified as asked, statistics matched, in range, not all the same."""

import numpy
import torch
from torch import Tensor, nn

from rqlib import measures
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import datasets
from rqlib.generator import batchnorm, features

NEIGHBORS = 1000
"""At most so many images are compared with each other: the distance to the nearest depends on their number."""


def report(teacher: nn.Module, pseudo: datasets.Split, spec: ImageSpec, real: datasets.Split | None = None) -> dict:
    """One row of figures.

    class_accuracy: share classified as asked; confidence: mean probability of the predicted class;
    batchnorm_distance (`batchnorm.mean_distance`) and the same of as many images of noise, None without
    BatchNorm; clipped: share of pixels that are exactly 0 or 1; nearest_distance: mean distance in pixels to the
    nearest other image, 0 if all are the same. With real images also their share of clipped pixels and nearest
    distance, and the Frechet distance to them in the teacher's features: for evaluation only.
    """
    logits = measures.logits(teacher, *pseudo)
    row = {
        "class_accuracy": (logits.argmax(1) == pseudo.labels.cpu()).double().mean().item(),
        "confidence": logits.softmax(1).amax(1).mean().item(),
        "batchnorm_distance": batchnorm.mean_distance(teacher, pseudo.images),
        "noise_batchnorm_distance": batchnorm.mean_distance(teacher, noise(spec, len(pseudo.labels))),
        "clipped": clipped(pseudo.images),
    }
    if real is None:
        return row | {"nearest_distance": nearest_distance(pseudo.images[:NEIGHBORS])}
    count = min(NEIGHBORS, len(pseudo.labels), len(real.labels))
    own, others = (features.features(teacher, images) for images in (pseudo.images, real.images))
    return row | {
        "real_clipped": clipped(real.images),
        "nearest_distance": nearest_distance(pseudo.images[:count]),
        "real_nearest_distance": nearest_distance(real.images[:count]),
        "frechet_distance": frechet_distance(own, others),
    }


def noise(spec: ImageSpec, count: int, *, seed: int = 0) -> Tensor:
    """Images uint8 of independent pixels with the mean and spread of the real ones: what statistics must beat."""
    pixels = torch.randn(count, *spec.shape, generator=runtime.rng(seed))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return datasets.to_uint8(mean + std * pixels)


def clipped(images: Tensor) -> float:
    """Share of values that are exactly 0 or 255 of images uint8."""
    return ((images == 0) | (images == 255)).double().mean().item()


def nearest_distance(images: Tensor) -> float:
    """Mean over images of the distance ``||x - x'||_2`` in pixels of [0, 1] to the nearest other image."""
    flat = datasets.to_pixels(images).flatten(1)
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).amin(1).mean().item()


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """``||m_x - m_y||^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))`` of features (N, L), (M, L) (Heusel et al. 2017).

    The teacher's own features, so a number to compare sets for one teacher, not an FID of arXiv 1706.08500.
    """
    (mean_x, root_x, trace_x), (mean_y, root_y, trace_y) = map(_moments, (x, y))
    overlap = numpy.linalg.norm(root_x @ root_y, "nuc")  # tr (S_x S_y)^(1/2)
    return float(max(((mean_x - mean_y) ** 2).sum() + trace_x + trace_y - 2 * overlap, 0.0))


def _moments(x: Tensor) -> tuple[numpy.ndarray, numpy.ndarray, float]:
    """Mean, symmetric root of the covariance, its trace."""
    values = x.double().numpy()
    eigenvalues, vectors = numpy.linalg.eigh(numpy.cov(values, rowvar=False))
    roots = numpy.sqrt(eigenvalues.clip(min=0))
    return values.mean(0), (vectors * roots) @ vectors.T, float((roots**2).sum())
