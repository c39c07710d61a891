import plotly.graph_objects as go
import torch

from rqlib import models
from rqlib.core import plots


def test_every_network_looks_different_from_every_other():
    looks = {(plots.color(name, models.MODELS), plots.dash(name, models.MODELS)) for name in models.MODELS}
    assert len(looks) == len(models.MODELS)


def test_a_strip_shows_the_pixels_on_white():
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    strip = plots.strip(images, 4)
    assert strip.shape == (3, 34, 4 * 34)
    assert torch.equal(strip[:, 1:33, 35:67], images[1])
    assert (strip[:, :, 0] == 255).all()
    assert (strip[:, :, 3 * 34 :] == 255).all()


def test_mosaics_have_as_many_rows_as_they_need_and_stand_side_by_side():
    figure = plots.mosaic(torch.zeros(9, 1, 6, 6, dtype=torch.uint8), columns=8, side=50, title="nine")
    assert isinstance(figure.data[0], go.Image)
    assert (figure.layout.width, figure.layout.height) == (60 + 8 * 50, 90 + 2 * 50)
    both = plots.side_by_side([figure, figure], title="both")
    assert len(both.data) == 2
    assert both.layout.width == 2 * figure.layout.width


def test_figures_follow_the_width_of_the_window():
    assert go.Figure().layout.template.layout.width is None


def test_the_axis_of_accuracies_has_no_tick_closer_to_1_than_the_images_can_tell():
    figure = plots.accuracy_axis(go.Figure(), 100)
    assert list(figure.layout.yaxis.ticktext) == ["0", "0.5", "0.8", "0.9", "0.95", "0.98", "1"]
