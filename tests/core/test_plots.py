import plotly.io as pio

from rqlib import models
from rqlib.core import plots


def test_house_template_is_the_default():
    assert pio.templates.default == "rqlib"
    assert pio.templates["rqlib"].layout.colorway == plots.PALETTE


def test_every_network_looks_different_from_every_other():
    looks = {(plots.color(name, models.MODELS), plots.dash(name, models.MODELS)) for name in models.MODELS}
    assert len(looks) == len(models.MODELS)
    assert plots.color("torchvision:resnet18", models.MODELS) == plots.color("torchvision:resnet18", models.MODELS)
