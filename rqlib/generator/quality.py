"""How good generated images are: classified as asked, with matching statistics, not clipped, not all the same."""

from collections.abc import Mapping

import numpy
import pandas
import torch
from torch import Tensor, nn

from rqlib import data, measures
from rqlib.core import runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import datasets
from rqlib.generator import batchnorm, last_layer

NEIGHBORS = 1000
"""Number of images compared with each other, at most: the distance to the nearest depends on their number."""


def assess(
    teacher: nn.Module, sets: Mapping[str, data.Split], spec: ImageSpec, real: data.Split | None = None
) -> pandas.DataFrame:
    """The figures of `report` for several sets of images: one row per set, its name in the column generator."""
    figures = {name: report(teacher, made, spec, real) for name, made in sets.items()}
    return pandas.DataFrame(figures).T.rename_axis("generator").reset_index()


def doubt(class_accuracy: float, num_classes: int) -> str:
    """A sentence if a generator has not learned to make images that are classified as asked; else an empty text.

    A generator that misses one of K classes reaches 1 - 1/K, so at least 1 - 1/(2 K) is expected. The sentence ends
    with a space, so that it can stand before another one.

    Args:
        class_accuracy: of its images (`report`), before it was adjusted.
        num_classes: K, of the network.
    """
    expected = 1 - 0.5 / num_classes
    if class_accuracy >= expected:
        return ""
    return (
        f"The generator has not learned enough: the network classifies {class_accuracy:.0%} of its images as asked, "
        f"expected {expected:.1%}. Train it for more epochs; until then its images tell little. "
    )


def report(teacher: nn.Module, pseudo: data.Split, spec: ImageSpec, real: data.Split | None = None) -> dict:
    """The figures of one set of generated images.

    class_accuracy: share classified as asked;
    confidence: mean probability of the predicted class;
    batchnorm_distance: as `batchnorm.mean_distance`, None for a teacher without BatchNorm;
    noise_batchnorm_distance: the same of as many images of noise;
    clipped: share of pixels that are exactly 0 or 1;
    nearest_distance: mean distance in pixels to the nearest other image, 0 if all images are the same.

    With real images, for evaluation only, also
    real_clipped, real_nearest_distance: the same of the real images;
    frechet_distance: the Frechet distance to the real images in the teacher's features.
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
    own, others = (last_layer.features(teacher, images) for images in (pseudo.images, real.images))
    return row | {
        "real_clipped": clipped(real.images),
        "nearest_distance": nearest_distance(pseudo.images[:count]),
        "real_nearest_distance": nearest_distance(real.images[:count]),
        "frechet_distance": frechet_distance(own, others),
    }


def noise(spec: ImageSpec, count: int, *, seed: int = 0) -> Tensor:
    """Images uint8 of independent pixels with the mean and spread of the real ones, for comparison."""
    pixels = torch.randn(count, *spec.shape, generator=runtime.rng(seed))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return datasets.to_uint8(mean + std * pixels)


def clipped(images: Tensor) -> float:
    """Share of the values of images uint8 that are exactly 0 or 255."""
    return ((images == 0) | (images == 255)).double().mean().item()


def nearest_distance(images: Tensor) -> float:
    """Distance ``||x - x'||_2`` in pixels of [0, 1] to the nearest other image, mean over images uint8."""
    flat = datasets.to_pixels(images).flatten(1)
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).amin(1).mean().item()


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """``||m_x - m_y||^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))`` of features (N, L), (M, L) (Heusel et al. 2017).

    It compares sets of images by the features of one teacher. It is not the FID of arXiv 1706.08500, which uses the
    features of an Inception network.
    """
    (mean_x, root_x, trace_x), (mean_y, root_y, trace_y) = map(_moments, (x, y))
    overlap = numpy.linalg.norm(root_x @ root_y, "nuc")  # tr (S_x S_y)^(1/2)
    return float(max(((mean_x - mean_y) ** 2).sum() + trace_x + trace_y - 2 * overlap, 0.0))


def _moments(x: Tensor) -> tuple[numpy.ndarray, numpy.ndarray, float]:
    """Mean, symmetric root of the covariance, trace of the covariance."""
    values = x.double().numpy()
    eigenvalues, vectors = numpy.linalg.eigh(numpy.cov(values, rowvar=False))
    roots = numpy.sqrt(eigenvalues.clip(min=0))
    return values.mean(0), (vectors * roots) @ vectors.T, float((roots**2).sum())
