"""Two-dimensional maps of features: how tight classes lie, how far apart, how much of the space is covered."""

import numpy
import pandas
import torch
from pandas import DataFrame
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from torch import Tensor

CELLS = 30
"""The covered area is counted in cells of a grid of 30 x 30 over all points."""


def project(reference: Tensor, sets: dict[str, tuple[Tensor, Tensor]]) -> DataFrame:
    """Every set on the two principal axes of the reference features: columns set, index, label, x, y.

    Args:
        reference: features (N, L) that the axes are fitted to.
        sets: name -> (features (M, L), labels (M,)).

    Raises:
        ValueError: sets of different numbers of features.
    """
    for name, (features, _) in sets.items():
        if features.shape[1] != reference.shape[1]:
            raise ValueError(
                f"{name}: expected {reference.shape[1]} features as the reference, got {features.shape[1]}"
            )
    axes = PCA(2, random_state=0).fit(reference.numpy())
    return pandas.concat([_mapped(axes, name, *one) for name, one in sets.items()], ignore_index=True)


def _mapped(axes: PCA, name: str, features: Tensor, labels: Tensor) -> DataFrame:
    x, y = axes.transform(features.numpy()).T
    return DataFrame({"set": name, "index": numpy.arange(len(x)), "label": labels.cpu().numpy(), "x": x, "y": y})


def measure(points: DataFrame, sets: dict[str, tuple[Tensor, Tensor]]) -> DataFrame:
    """What the map shows, in numbers; a row a set.

    silhouette: of the classes in all L features, 1 for tight and far apart, 0 for touching (Rousseeuw 1987), NaN
    for one class alone, as the next;
    center_distance: mean distance between centers of classes over the mean distance of an image to its center, NaN
    where every class is one point;
    covered_area: cells of the map with at least one point, as a share of those that any set covers.
    """
    cells = points.assign(cell=_cells(points.x) * CELLS + _cells(points.y)).groupby("set").cell.agg(set)
    reached = len(set.union(*cells))
    rows = {
        name: {
            "images": len(labels),
            **_separation(features, labels.cpu()),
            "covered_area": len(cells[name]) / reached,
        }
        for name, (features, labels) in sets.items()
    }
    return DataFrame.from_dict(rows, orient="index").rename_axis("set").reset_index()


def _cells(values: pandas.Series) -> pandas.Series:
    low, high = values.min(), values.max()
    return ((values - low) / ((high - low) or 1.0) * CELLS).astype(int).clip(upper=CELLS - 1)


def _separation(features: Tensor, labels: Tensor) -> dict[str, float]:
    groups = [features[labels == label] for label in labels.unique()]
    if len(groups) < 2:
        return {"silhouette": numpy.nan, "center_distance": numpy.nan}
    centers = torch.stack([group.mean(0) for group in groups])
    within = [(group - center).norm(dim=1).mean().item() for group, center in zip(groups, centers, strict=True)]
    return {
        "silhouette": float(silhouette_score(features.numpy(), labels.numpy())),
        "center_distance": torch.pdist(centers).mean().item() / (numpy.mean(within) or numpy.nan),
    }
