import ipywidgets
import plotly.graph_objects as go
import torch

from rqlib.core import widgets


def bars(height: int, kind: str) -> go.Figure:
    trace = go.Bar(y=[height]) if kind == "bar" else go.Scatter(y=[height])
    return go.Figure(trace).update_layout(title=f"{kind} {height}")


def test_explorer_redraws_when_a_control_moves():
    view = widgets.explorer(
        bars, height=ipywidgets.IntSlider(1, 0, 9), kind=ipywidgets.Dropdown(options=["bar", "line"])
    )
    assert tuple(view.figure.data[0].y) == (1,)
    view.controls["height"].value = 7
    assert tuple(view.figure.data[0].y) == (7,)
    assert view.figure.layout.title.text == "bar 7"
    view.controls["kind"].value = "line"
    assert view.figure.data[0].type == "scatter"
    assert view.static().layout.title.text == view.figure.layout.title.text == "line 7"
    assert len(view.children[0].children) == 2


def test_a_figure_is_drawn_whenever_its_frame_is_displayed(monkeypatch):
    view = widgets.explorer(bars, height=ipywidgets.IntSlider(4, 0, 9), kind=ipywidgets.Dropdown(options=["bar"]))
    drawn = []
    monkeypatch.setattr(widgets, "replace", lambda live, figure: drawn.append(figure.layout.title.text))
    view._repr_mimebundle_()
    assert drawn == ["bar 4"]


def test_a_move_is_computed_on_one_thread():
    seen, before = [], torch.get_num_threads()

    def draw(height: int) -> go.Figure:
        seen.append(torch.get_num_threads())
        return bars(height, "bar")

    torch.set_num_threads(2)
    try:
        widgets.explorer(draw, height=ipywidgets.IntSlider(1, 0, 9)).controls["height"].value = 5
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]
