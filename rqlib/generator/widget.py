"""Superpose two classes with a slider; click on a point of a map to see its image."""

from collections.abc import Mapping, Sequence

import ipywidgets
import plotly.graph_objects as go
import torch
from pandas import DataFrame
from plotly.subplots import make_subplots
from torch import Tensor, nn

from rqlib import data, measures
from rqlib.core import plots, widgets
from rqlib.generator import figures, mixtures, sampling
from rqlib.generator.network import Generator


def superposition(
    generator: Generator, teacher: nn.Module, classes: Sequence[str], *, count: int = 8
) -> widgets.Explorer:
    """``count`` images between two classes, of the same noise, and the teacher's mean probability of every class."""
    names = list(classes)

    def draw(percent: int, first: str, second: str) -> go.Figure:
        one, two = names.index(first), names.index(second)
        mixture = ((100 - percent) * _row(one, len(names)) + percent * _row(two, len(names))) / 100
        images = sampling.images(generator, mixture.expand(count, -1), seed=0)
        logits = measures.logits(teacher, images, torch.full((count,), two))
        return _superposed(images, logits.softmax(1).mean(0), names, f"{100 - percent}% {first}, {percent}% {second}")

    choice = {"options": names, "layout": {"width": "200px"}}
    return widgets.explorer(
        draw,
        percent=ipywidgets.IntSlider(50, 0, 100, step=5, description="percent", continuous_update=False),
        first=ipywidgets.Dropdown(value=names[0], description="from", **choice),
        second=ipywidgets.Dropdown(value=names[1], description="to", **choice),
    )


def _row(label: int, classes: int) -> Tensor:
    return mixtures.single(torch.tensor([label]), classes)


def _superposed(images: Tensor, probabilities: Tensor, names: list[str], title: str) -> go.Figure:
    figure = make_subplots(1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.08)
    grid = plots.mosaic(images, columns=4)
    figure.add_traces(grid.data, rows=1, cols=1)
    bars = {"marker_color": plots.PALETTE[0], "hovertemplate": "%{x}: %{y:.2f}<extra></extra>"}
    figure.add_trace(go.Bar(x=names, y=probabilities.tolist(), **bars), row=1, col=2)
    figure.update_xaxes(visible=False, row=1, col=1).update_yaxes(visible=False, autorange="reversed", row=1, col=1)
    figure.update_xaxes(type="category", tickangle=-45 if max(map(len, names)) > 3 else 0, row=1, col=2)
    figure.update_yaxes(title="mean probability", range=[0, 1.02], row=1, col=2)
    return figure.update_layout(title=title, height=380, showlegend=False)


class LinkedMap(widgets.Frame):
    """Maps of features side by side; a click on a point shows its image below them.

    ``points`` are those of `map_features` for these sets of images.
    """

    def __init__(self, points: DataFrame, sets: Mapping[str, data.Split], classes: Sequence[str]):
        self.points, self.sets, self.classes = points, sets, list(classes)
        self.figure = go.FigureWidget(figures.maps(points, self.classes))
        self.shown = go.FigureWidget(self.static(points.set.iloc[0], 0))
        super().__init__([self.figure, self.shown])
        for trace in self.figure.data:
            trace.on_click(self._click)

    def redraw(self) -> None:
        """Draw the maps again; the image stays."""
        widgets.replace(self.figure, figures.maps(self.points, self.classes))

    def show(self, name: str, index: int) -> None:
        """Show one image of a set."""
        widgets.replace(self.shown, self.static(name, index))

    def static(self, name: str, index: int) -> go.Figure:
        """The picture of one image, with its set, number and class."""
        point = self.points[(self.points.set == name) & (self.points["index"] == index)].iloc[0]
        figure = plots.mosaic(self.sets[name].images[index : index + 1], columns=1)
        title = f"{name}, image {index}: {self.classes[point.label]}"
        return figure.update_layout(title=title, width=320, height=300)

    def _click(self, trace: go.Scatter, points, state) -> None:
        for number in points.point_inds:
            self.show(*trace.customdata[number])
