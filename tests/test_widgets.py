import ipywidgets
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from rqlib import data, widgets


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


def test_a_failing_drawing_is_not_swallowed_by_redraw():
    view = widgets.explorer(lambda value: go.Figure(go.Bar(y=[1 / value])), value=ipywidgets.FloatText(1.0))
    view.controls["value"].set_trait("value", 1.0)
    view.draw = lambda value: 1 / 0
    with pytest.raises(ZeroDivisionError):
        view.redraw()


def test_live_curves_follow_the_rows():
    figure, update = widgets.live_curves(3)
    rows = [{"epoch": 1, "loss": 2.0, "validation_loss": 1.5, "validation_accuracy": 0.4}]
    update(None, rows)
    update(None, [*rows, rows[0] | {"epoch": 2, "loss": 1.0}])
    assert tuple(figure.data[0].y) == (2.0, 1.0)
    assert figure.layout.xaxis.range == (0.5, 3.5)


@pytest.fixture
def networks():
    return {
        title: nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 36, 10))
        for title in ("natural", "adversarial")
    }


def test_feature_browser_shows_both_networks(networks):
    images = torch.randint(0, 255, (5, 3, 8, 8), dtype=torch.uint8)
    labels, classes = torch.arange(5), tuple("abcde")
    browser = widgets.feature_browser(networks, images, labels, classes, channels=16)
    assert browser.controls["layer"].options == ("0", "1")
    browser.controls["image"].value = 3
    browser.controls["first_channel"].value = 32
    assert browser.figure.layout.title.text == "Layer 0, image 3 (label d)"
    titles = [note.text for note in browser.static().layout.annotations]
    assert titles == ["natural: channels 24 to 39", "adversarial: channels 24 to 39"]
    maps = widgets.features(networks["natural"], "1", data.to_pixels(images[3:4]))
    torch.testing.assert_close(maps, networks["natural"][0](data.to_pixels(images[3:4])).relu())


def test_networks_without_a_common_layer_are_refused(networks):
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    with pytest.raises(ValueError, match="share layer names, got natural, other"):
        widgets.feature_browser(
            {"natural": networks["natural"], "other": other},
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            torch.zeros(1, dtype=torch.int64),
            ("a",),
        )
