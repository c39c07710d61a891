import math

import pytest
import torch
from sklearn.decomposition import PCA

from rqlib import data, generator
from rqlib.generator import feature_map, last_layer
from tests import generated

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


def test_what_has_no_size_or_no_distance_is_nan():
    features, labels = clusters(1.0)
    sets = {
        "real": (features, labels),
        "one class": (features, torch.zeros_like(labels)),
        "one point": (torch.ones_like(features), labels),
        "one image per class": (features[:4], torch.arange(4)),
    }
    table = feature_map.measure(feature_map.project(features, sets), sets).set_index("set")
    assert table.loc["one class", ["silhouette", "center_distance"]].isna().all()
    assert table.loc["one image per class", ["silhouette", "center_distance"]].isna().all()
    assert math.isnan(table.center_distance["one point"])
    assert table.covered_area["one point"] < 0.1 < table.covered_area["real"]


def test_sets_of_images_are_cut_to_the_smallest_and_mapped():
    images, made = data.load("digits"), generator.sample(generated.trained(), 60)
    found = generator.map_features(
        generated.teacher(), {"test": images.test.take(40), "trained": made}, reference=images.validation.images
    )
    assert found.points.set.value_counts().to_dict() == {"test": 40, "trained": 40}
    assert found.separation.images.tolist() == [40, 40]
    reference = last_layer.features(generated.teacher(), images.validation.images)
    features = {"trained": (last_layer.features(generated.teacher(), made.images[:40]), made.labels[:40])}
    alone = feature_map.project(reference, features)
    assert found.points.loc[found.points.set == "trained", "x"].tolist() == pytest.approx(alone.x.tolist(), abs=1e-5)


def test_sets_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="b: expected 6 features as the reference, got 3"):
        feature_map.project(clusters(1.0)[0], {"b": (torch.randn(9, 3), torch.arange(9))})
