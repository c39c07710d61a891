"""Controls beside a figure: choose, redraw, never train. One mechanism, `explorer`, serves every notebook."""

from collections.abc import Callable

import ipywidgets
import plotly.graph_objects as go


class Explorer(ipywidgets.VBox):
    """Controls above a live figure that is drawn anew whenever one of them changes."""

    def __init__(self, draw: Callable[..., go.Figure], controls: dict[str, ipywidgets.ValueWidget]):
        self.draw, self.controls = draw, controls
        self.figure = go.FigureWidget(self.static())
        rows = ipywidgets.Layout(flex_flow="row wrap")
        super().__init__([ipywidgets.HBox(list(controls.values()), layout=rows), self.figure])
        for control in controls.values():
            control.observe(lambda change: self.redraw(), names="value")

    def static(self) -> go.Figure:
        """The figure of the present state, for a batch run or a report."""
        return self.draw(**{name: control.value for name, control in self.controls.items()})

    def redraw(self) -> None:
        """Draw the present state into the live figure."""
        replace(self.figure, self.static())


def explorer(draw: Callable[..., go.Figure], **controls: ipywidgets.ValueWidget) -> Explorer:
    """A live figure ``draw(**values)`` under one control for each argument."""
    return Explorer(draw, controls)


def replace(live: go.FigureWidget, figure: go.Figure) -> None:
    """Give a live figure the traces and layout of another; traces of the same kinds are updated in place."""
    with live.batch_update():
        if [trace.type for trace in live.data] == [trace.type for trace in figure.data]:
            for old, new in zip(live.data, figure.data, strict=True):
                old.update(new.to_plotly_json(), overwrite=True)
        else:
            live.data = []
            live.add_traces(figure.data)
        live.layout = figure.layout
