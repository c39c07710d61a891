"""Controls above a figure that is drawn again when one of them changes. All notebooks use `explorer`.

A control only chooses what is shown; it never trains or measures anything.
"""

from collections.abc import Callable

import ipywidgets
import plotly.graph_objects as go

from rqlib.core import (
    quick_jsonschema,  # noqa: F401 - before plotly's widget imports it
    runtime,
)


class Frame(ipywidgets.VBox):
    """Widgets below each other. Its live figures are drawn when it is displayed, so that none stays blank."""

    def redraw(self) -> None:
        """Draw the live figures again."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **options):
        self.redraw()
        return super()._repr_mimebundle_(**options)


class Explorer(Frame):
    """Controls above a live figure, which is drawn again whenever one of them changes."""

    def __init__(self, draw: Callable[..., go.Figure], controls: dict[str, ipywidgets.ValueWidget]):
        self.draw, self.controls = draw, controls
        self.figure = go.FigureWidget(self.static())
        rows = ipywidgets.Layout(flex_flow="row wrap")
        super().__init__([ipywidgets.HBox(list(controls.values()), layout=rows), self.figure])
        for control in controls.values():
            control.observe(lambda change: self.redraw(), names="value")

    def static(self) -> go.Figure:
        """A plain figure for the present values of the controls, for batch runs and reports."""
        with runtime.one_thread():  # more threads wait for each other where other programs run, many times as long
            return self.draw(**{name: control.value for name, control in self.controls.items()})

    def redraw(self) -> None:
        """Draw the live figure again, for the present values of the controls."""
        replace(self.figure, self.static())


def explorer(draw: Callable[..., go.Figure], **controls: ipywidgets.ValueWidget) -> Explorer:
    """A live figure ``draw(**values)`` below its controls; each control sets the argument of the same name."""
    return Explorer(draw, controls)


def replace(live: go.FigureWidget, figure: go.Figure) -> None:
    """Give a live figure the traces and layout of another figure. Traces of the same kinds are updated in place."""
    with live.batch_update():
        if [trace.type for trace in live.data] == [trace.type for trace in figure.data]:
            for old, new in zip(live.data, figure.data, strict=True):
                old.update(new.to_plotly_json(), overwrite=True)
        else:
            live.data = []
            live.add_traces(figure.data)
        live.layout = figure.layout
