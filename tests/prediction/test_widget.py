import functools

import numpy
import pytest

from rqlib.prediction import features, fits, widget
from tests import published

table = functools.partial(published.losses, 3)


def title(explorer) -> str:
    return explorer.figure.layout.title.text


def test_controls_choose_rows_feature_and_family():
    explorer = widget.r2_explorer(table())
    controls = explorer.controls
    assert controls["feature"].options == tuple(features.names(table()))
    controls["feature"].value, controls["family"].value = "js_macs", "isotonic"
    held_out = fits.cross(table(), ["js_macs"], "accuracy_loss", "model", "isotonic").table()
    out = fits.scores(held_out.accuracy_loss, held_out.predicted)["r2"]
    fit = fits.fit(table()[["js_macs"]], table().accuracy_loss, "isotonic")
    assert title(explorer) == (
        f"isotonic of js_macs, 36 rows<br>R<sup>2</sup> in sample {fit.r2:.3f}, leaving one model out {out:.3f}"
    )
    controls["networks"].value = ("net0", "net1")
    assert "24 rows" in title(explorer)
    assert not {"net2"} & {trace.name for trace in explorer.figure.data}


@pytest.mark.parametrize("family", widget.FAMILIES)
def test_every_family_draws_a_nondecreasing_curve(family):
    explorer = widget.r2_explorer(table())
    explorer.controls["family"].value = family
    (curve,) = (trace for trace in explorer.static().data if trace.name == family)
    assert (numpy.diff(curve.y) >= -1e-12).all()


def test_what_cannot_be_fitted_or_left_out_is_said_in_the_figure():
    explorer = widget.r2_explorer(table())
    explorer.controls["networks"].value = ()
    assert "expected at least 3 rows" in explorer.figure.layout.annotations[0].text
    explorer.controls["networks"].value = ("net0",)
    assert not explorer.figure.layout.annotations
    assert title(explorer).endswith("one model alone: none to leave out")
