from rqlib import data, generator
from rqlib.generator import widget
from tests import generated
from tests.generator.test_figures import points


def test_the_slider_moves_images_from_one_class_to_another():
    explorer = widget.superposition(generated.trained(), generated.teacher(), data.load("digits").classes)
    explorer.controls["first"].value, explorer.controls["second"].value = "3", "6"
    explorer.controls["percent"].value = 0
    assert explorer.figure.layout.title.text == "100% 3, 0% 6"
    assert explorer.figure.data[1].y[3] > 0.7
    explorer.controls["percent"].value = 100
    assert explorer.figure.layout.title.text == "0% 3, 100% 6"
    assert explorer.figure.data[1].y[6] > 0.7


def test_a_click_shows_the_image_of_the_point():
    sets = {"test": data.load("digits").test.take(20), "trained": generator.sample(generated.trained(), 20)}
    linked = widget.LinkedMap(points(), sets, ["a", "b", "c", "d"])
    assert linked.shown.layout.title.text == "test, image 0: a"
    trace = linked.figure.data[6]  # class c of the second set: images 2, 6, 10, ...
    linked._click(trace, type("Points", (), {"point_inds": [1]}), None)
    assert linked.shown.layout.title.text == "trained, image 6: c"
    before = linked.shown.data[0].source
    linked.show("test", 6)
    assert linked.shown.data[0].source != before
    linked.figure.data = []
    linked._repr_mimebundle_()
    assert len(linked.figure.data) == 8, "what is displayed is drawn, whoever displays it"
