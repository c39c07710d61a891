"""Figures of defenses show the rows that they are given."""

import pandas
import pytest
import torch

from rqlib.defenses import activation_signals, figures


def test_curves_lie_over_the_density():
    signal = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    curves = activation_signals.curves(activation_signals.started(["DTReLU_2", "DDTReLU_2"], signal), signal, points=50)
    figure = figures.activation_curves(curves, signal, title="here")
    density, *lines = figure.data
    assert max(density.y) == 1
    assert [line.name for line in lines] == ["ReLU", "DTReLU_2", "DDTReLU_2"]
    assert all(len(line.x) == 50 for line in lines)
    assert figure.layout.title.text == "here"


def test_costs():
    rows = pandas.DataFrame(
        {
            "activation": ["ReLU", "ReLU", "DDTReLU", "DDTReLU, loop"],
            "elements": [10, 100, 10, 10],
            "seconds": [1e-5, 2e-5, 1e-4, 1e-3],
        }
    )
    figure = figures.cost_against_size(rows)
    assert [line.name for line in figure.data] == ["ReLU", "DDTReLU", "DDTReLU, loop"]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.data[1].line.color == figure.data[2].line.color != figure.data[0].line.color


def test_the_bound_is_compared_with_the_largest_ratio_of_all():
    rows = pandas.DataFrame(
        [
            ("original", "logits", "random", 0.1, 1.0, 80.0),
            ("original", "logits", "pgd", 0.1, 2.0, 80.0),
            ("original", "logits", "pgd", 1.0, 4.0, 60.0),
            ("original", "first", "pgd", 1.0, 50.0, 100.0),
            ("regularized", "logits", "jacobian", 0.0, 3.0, 6.0),
        ],
        columns=["variant", "name", "perturbation", "size", "largest", "bound"],
    )
    figure = figures.bound_over_measured(rows)
    points = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    assert points["bound"] == {"original, 15 times": 60, "regularized, 2 times": 6}
    assert points["PGD"] == {"original, 15 times": 4}
    assert points["random directions"] == {"original, 15 times": 1}
    assert points["Jacobian at the images"] == {"regularized, 2 times": pytest.approx(3)}
