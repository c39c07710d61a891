import math

import pandas
import pytest
import scipy.stats
import torch

from rqlib.pruning import figures


@pytest.fixture
def rows():
    made = [("dense", 1.0, seed, 0.9, 0.5) for seed in (0, 1)]
    for method, base in (("lwm", 0.3), ("hydra", 0.4)):
        for kept in (0.1, 0.01):
            made += [(method, kept, seed, base + 0.3, base + 0.02 * seed) for seed in (0, 1)]
    return pandas.DataFrame(made, columns=["method", "kept", "seed", "clean_accuracy", "robust_accuracy"])


def test_mean_and_interval_over_seeds(rows):
    found = figures.over_seeds(rows[rows.method == "hydra"], "robust_accuracy")
    low, high = scipy.stats.t.interval(0.95, 1, loc=0.41, scale=scipy.stats.sem([0.4, 0.42]))
    assert found["mean"].tolist() == pytest.approx([0.41, 0.41])
    assert found.half.tolist() == pytest.approx([(high - low) / 2] * 2)
    assert found["count"].tolist() == [2, 2]


def test_one_seed_has_no_interval(rows):
    found = figures.over_seeds(rows[(rows.seed == 0) & (rows.method == "lwm")], "clean_accuracy")
    assert all(map(math.isnan, found.half))
    figure = figures.accuracy_against_kept(rows[rows.seed == 0])
    assert not any(line.error_y.visible for line in figure.data)


def test_a_line_a_method_in_each_panel(rows):
    figure = figures.accuracy_against_kept(rows)
    assert [line.name for line in figure.data] == ["LWM", "HYDRA"] * 2
    assert [line.showlegend for line in figure.data] == [True, True, False, False]
    assert figure.data[3].y == pytest.approx((0.41, 0.41))
    assert all(line.error_y.visible for line in figure.data[2:])
    assert [shape.y0 for shape in figure.layout.shapes] == [0.9, 0.5]
    assert figure.layout.xaxis.ticktext == ("0.01", "0.1")


def test_histogram_counts_what_each_mask_keeps():
    weight = torch.randn(4, 3, 3, 3)
    figure = figures.kept_histogram(weight, {"lwm": weight.abs() > 1, "hydra": torch.ones(4, 1, 1, 1).bool()})
    counts = [sum(line.customdata) for line in figure.data]
    assert counts == [108, (weight.abs() > 1).sum(), 108]
    assert [line.name for line in figure.data] == ["dense (108)", f"LWM ({counts[1]:.0f})", "HYDRA (108)"]


def test_hidden_networks_keep_the_order_of_the_objectives():
    pairs = [(a, b) for a in ("natural", "adversarial") for b in ("none", "natural", "adversarial")]
    made = [
        {"pretrained_for": a, "pruned_for": b, "clean_accuracy": 0.9, "robust_accuracy": i / 10}
        for i, (a, b) in enumerate(pairs)
    ]
    (heatmap,) = figures.hidden_networks(pandas.DataFrame(made)).data
    assert list(heatmap.x) == ["none", "natural", "adversarial"]
    assert list(heatmap.y) == ["natural", "adversarial"]
    assert heatmap.z.tolist() == [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]


@pytest.mark.parametrize("names", [["images", "epochs"], ["epochs"]])
def test_ablation_has_a_panel_for_what_was_varied(names):
    made = [
        {"varied": v, "amount": n, "clean_accuracy": 0.5, "robust_accuracy": 0.1 * n} for v in names for n in (3, 1)
    ]
    figure = figures.ablation(pandas.DataFrame(made))
    assert len(figure.data) == 2 * len(names)
    assert list(figure.data[-1].x) == [1, 3]
    assert list(figure.data[-1].y) == pytest.approx([0.1, 0.3])


def test_published_rows():
    published = figures.PUBLISHED.pivot_table("published_robust_accuracy", "kept", "method")
    assert (published.hydra > published.lwm).all()
    assert published.loc[0.01].tolist() == [0.417, 0.343]
