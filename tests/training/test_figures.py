import pandas
import plotly.graph_objects as go
import torch

from rqlib.training import figures

HISTORY = pandas.DataFrame(
    {"epoch": [1, 2], "loss": [2.0, 1.0], "validation_loss": [1.9, 1.2], "validation_accuracy": [0.3, 0.6]}
)


def test_sample_grid_has_one_row_per_class():
    images = torch.randint(0, 255, (30, 3, 32, 32), dtype=torch.uint8)
    figure = figures.sample_grid(images, torch.arange(30) % 3, ("a", "b", "c"), title="")
    assert figure.layout.yaxis.ticktext == ("a", "b", "c")
    assert isinstance(figure.data[0], go.Image)


def test_cost_bars_show_only_what_computes():
    profile = pandas.DataFrame({"layer": ["conv", "norm"], "params": [27, 6], "macs": [500, 0]})
    figure = figures.cost_bars(profile, title="")
    assert [tuple(bar.x) for bar in figure.data] == [("conv",), ("conv",)]
    assert [bar.y[0] for bar in figure.data] == [27, 500]


def test_training_curves_show_the_columns_there_are():
    figure = figures.training_curves(HISTORY, epochs=10)
    assert [trace.name for trace in figure.data] == ["training loss", "validation loss", "validation accuracy"]
    assert tuple(figure.data[0].y) == (2.0, 1.0)
    assert figure.layout.xaxis.range == (0.5, 10.5)
    assert len(figures.training_curves(pandas.DataFrame(), epochs=3).data) == 0
    robust = figures.training_curves(HISTORY.assign(validation_robust_accuracy=0.2))
    assert "robust validation accuracy" in [trace.name for trace in robust.data]


def test_confusion_shares_are_of_the_row():
    figure = figures.confusion_matrix(torch.tensor([[3, 1], [0, 0]]), ("cat", "dog"), title="")
    assert list(figure.data[0].z[0]) == [0.75, 0.25]
    assert list(figure.data[0].z[1]) == [0.0, 0.0]
    assert figure.layout.yaxis.title.text == "label"
