"""Figures show the numbers of their tables."""

import pandas
import pytest
import scipy.stats

from rqlib.pruning import figures


@pytest.fixture
def rows():
    made = [("dense", 1.0, seed, 0.9, 0.5) for seed in (0, 1)]
    for method, base in (("lwm", 0.3), ("hydra", 0.4)):
        for kept in (0.1, 0.01):
            made += [(method, kept, seed, base + 0.3, base + 0.02 * seed) for seed in (0, 1)]
    return pandas.DataFrame(made, columns=["method", "kept", "seed", "clean_accuracy", "robust_accuracy"])


def test_mean_and_interval_over_seeds(rows):
    found = figures.mean_over_seeds(rows[rows.method == "hydra"], "robust_accuracy")
    low, high = scipy.stats.t.interval(0.95, 1, loc=0.41, scale=scipy.stats.sem([0.4, 0.42]))
    assert found["mean"].tolist() == pytest.approx([0.41, 0.41])
    assert found.half.tolist() == pytest.approx([(high - low) / 2] * 2)
    assert found["count"].tolist() == [2, 2]
    single = rows[(rows.method == "hydra") & (rows.seed == 0)]
    assert figures.mean_over_seeds(single, "robust_accuracy").half.isna().all()


def test_one_line_per_method_in_each_panel(rows):
    figure = figures.accuracy_against_kept(rows)
    assert [line.name for line in figure.data] == ["LWM", "HYDRA", "before"] * 2
    assert figure.data[4].y == pytest.approx((0.41, 0.41))
    assert all(line.error_y.visible for line in figure.data if line.name != "before")
    assert not any(line.error_y.visible for line in figures.accuracy_against_kept(rows[rows.seed == 0]).data)


def test_the_interval_of_an_accuracy_over_few_seeds_ends_at_0_and_1(rows):
    spread = rows.assign(robust_accuracy=rows.seed.map({0: 0.0, 1: 0.9}).fillna(0.9))
    for line in [line for line in figures.accuracy_against_kept(spread).data[3:] if line.name != "before"]:
        assert (line.y + line.error_y.array).max() == pytest.approx(1.0)
        assert (line.y - line.error_y.arrayminus).min() == pytest.approx(0.0)


def test_hidden_networks_keep_the_order_of_the_objectives():
    pairs = [(a, b) for a in ("natural", "adversarial") for b in ("none", "natural", "adversarial")]
    rows = pandas.DataFrame(pairs, columns=["pretrained_for", "pruned_for"])
    rows = rows.assign(clean_accuracy=0.9, robust_accuracy=rows.index / 10)
    (heatmap,) = figures.hidden_networks(rows).data
    assert list(heatmap.x) == ["none", "natural", "adversarial"]
    assert list(heatmap.y) == ["natural", "adversarial"]
    assert heatmap.z.tolist() == [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]


@pytest.mark.parametrize("names", [["images", "epochs"], ["epochs"]])
def test_ablation_has_a_panel_for_what_was_varied(names):
    rows = pandas.DataFrame([(name, amount) for name in names for amount in (3, 1)], columns=["varied", "amount"])
    figure = figures.ablation(rows.assign(clean_accuracy=0.5, robust_accuracy=0.1 * rows.amount))
    assert len(figure.data) == 2 * len(names)
    assert list(figure.data[-1].x) == [1, 3]
    assert list(figure.data[-1].y) == pytest.approx([0.1, 0.3])


def test_the_network_before_pruning_is_a_line_with_a_name():
    scores = {"clean_accuracy": [0.9, 0.8, 0.5], "robust_accuracy": [0.6, 0.5, 0.2]}
    rows = pandas.DataFrame({"method": ["dense", "lwm", "lwm"], "kept": [1.0, 0.5, 0.1], "seed": 0, **scores})
    lines = [trace for trace in figures.accuracy_against_kept(rows).data if trace.name == "before"]
    assert [list(line.y) for line in lines] == [[0.9, 0.9], [0.6, 0.6]]
    assert list(lines[0].x) == [0.1, 0.5]
    assert [line.showlegend for line in lines] == [True, False]
