import math

import pytest
import torch
from sklearn.decomposition import PCA

from rqlib.generator import feature_map

LABELS = torch.arange(4).repeat(50)


def clusters(spread: float, apart: float = 5.0):
    torch.manual_seed(0)
    centers = apart * torch.eye(4, 6)
    return centers[LABELS] + spread * torch.randn(200, 6), LABELS


def test_the_axes_are_those_of_the_reference():
    sets = {"a": clusters(0.5), "b": clusters(2.0)}
    points = feature_map.project(sets["a"][0], sets)
    expected = PCA(2, random_state=0).fit(sets["a"][0].numpy()).transform(sets["b"][0].numpy())
    own = points[points.set == "b"]
    assert own[["x", "y"]].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert own["index"].tolist() == list(range(200))
    assert own.label.tolist() == LABELS.tolist()


def test_numbers_tell_tight_from_wide():
    sets = {"tight": clusters(0.2), "far": clusters(0.2, apart=9.0), "wide": clusters(3.0)}
    table = feature_map.measure(feature_map.project(sets["tight"][0], sets), sets).set_index("set")
    assert table.silhouette["far"] > table.silhouette["tight"] > table.silhouette["wide"]
    assert table.center_distance["far"] > 1.5 * table.center_distance["tight"]
    assert table.covered_area["wide"] > 3 * table.covered_area["tight"]
    assert table.covered_area.le(1).all()
    alone = {"tight": sets["tight"]}
    assert feature_map.measure(feature_map.project(sets["tight"][0], alone), alone).covered_area[0] == 1


def test_one_class_alone_has_nothing_to_be_apart_from():
    sets = {"one": (clusters(1.0)[0], torch.zeros(200, dtype=torch.long))}
    row = feature_map.measure(feature_map.project(sets["one"][0], sets), sets).iloc[0]
    assert row[["silhouette", "center_distance"]].isna().all()
    assert row.covered_area == 1


def test_classes_that_are_one_point_have_no_size_to_be_apart_by():
    features, labels = clusters(1.0)
    collapsed = {"one point": (torch.ones_like(features), labels), "real": (features, labels)}
    table = feature_map.measure(feature_map.project(features, collapsed), collapsed).set_index("set")
    assert math.isnan(table.center_distance["one point"])
    assert table.covered_area["one point"] < 0.1 < table.covered_area["real"]


def test_sets_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="b: expected 6 features as the reference, got 3"):
        feature_map.project(clusters(1.0)[0], {"b": (torch.randn(9, 3), torch.arange(9))})
