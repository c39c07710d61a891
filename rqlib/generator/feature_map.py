"""Two-dimensional maps of features: how tight classes lie, how far apart, and how much of the map they cover."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy
import pandas
import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data
from rqlib.generator import last_layer

CELLS = 30
"""The covered area is counted in the cells of a grid of 30 x 30 over all points."""

MOST = 1000
"""Number of images of a set on a map, at most."""


class FeatureMap(NamedTuple):
    """The points of a map, as of `project`, and their figures, as of `measure`."""

    points: DataFrame
    separation: DataFrame


def map_features(model: nn.Module, sets: Mapping[str, data.Split], *, reference: Tensor) -> FeatureMap:
    """Map what flows into the last layer of a network, for several sets of images.

    Every set shows its first images: as many as the smallest set has, and at most 1,000.

    Args:
        reference: images uint8 (N, C, H, W); the axes of the map are fitted to their features.
    """
    count = min(MOST, *(len(made.labels) for made in sets.values()))
    shown = {name: made.take(count) for name, made in sets.items()}
    features = {name: (last_layer.features(model, made.images), made.labels) for name, made in shown.items()}
    points = project(last_layer.features(model, reference), features)
    return FeatureMap(points, measure(points, features))


def project(reference: Tensor, sets: dict[str, tuple[Tensor, Tensor]]) -> DataFrame:
    """Every set on the two principal axes of the reference features: one row per image.

    Args:
        reference: features (N, L) that the axes are fitted to.
        sets: name -> (features (M, L), labels (M,)).

    Returns:
        Columns: set, index (of the image in its set), label, x, y.

    Raises:
        ValueError: a set has another number of features than the reference.
    """
    from sklearn.decomposition import PCA

    axes, mapped = PCA(2, random_state=0).fit(reference.numpy()), []
    for name, (features, labels) in sets.items():
        expected, got = reference.shape[1], features.shape[1]
        if got != expected:
            raise ValueError(f"{name}: expected {expected} features as the reference, got {got}")
        x, y = axes.transform(features.numpy()).T
        rows = {"set": name, "index": numpy.arange(len(x)), "label": labels.cpu().numpy(), "x": x, "y": y}
        mapped.append(DataFrame(rows))
    return pandas.concat(mapped, ignore_index=True)


def measure(points: DataFrame, sets: dict[str, tuple[Tensor, Tensor]]) -> DataFrame:
    """What the map shows, in figures: one row per set.

    images: number of images;
    silhouette: of the classes in all L features, 1 for tight classes far apart, 0 for touching ones (Rousseeuw 1987),
    NaN for one class alone, and if every class has a single image;
    center_distance: mean distance between the centers of classes, divided by the mean distance of an image to the
    center of its class; NaN for one class alone, and if every class is a single point;
    covered_area: cells of the map with at least one point, as a share of the cells that any set covers.
    """
    cells = points.assign(cell=_cells(points.x) * CELLS + _cells(points.y)).groupby("set").cell.agg(set)
    reached = len(set.union(*cells))
    rows = []
    for name, (features, labels) in sets.items():
        separation = _separation(features, labels.cpu())
        rows.append({"set": name, "images": len(labels), **separation, "covered_area": len(cells[name]) / reached})
    return DataFrame(rows)


def _cells(values: pandas.Series) -> pandas.Series:
    low, high = values.min(), values.max()
    return ((values - low) / ((high - low) or 1.0) * CELLS).astype(int).clip(upper=CELLS - 1)


def _separation(features: Tensor, labels: Tensor) -> dict[str, float]:
    from sklearn.metrics import silhouette_score

    groups = [features[labels == label] for label in labels.unique()]
    if not 2 <= len(groups) < len(labels):
        return {"silhouette": numpy.nan, "center_distance": numpy.nan}
    centers = torch.stack([group.mean(0) for group in groups])
    within = [(group - center).norm(dim=1).mean().item() for group, center in zip(groups, centers, strict=True)]
    return {
        "silhouette": float(silhouette_score(features.numpy(), labels.numpy())),
        "center_distance": torch.pdist(centers).mean().item() / (numpy.mean(within) or numpy.nan),
    }
