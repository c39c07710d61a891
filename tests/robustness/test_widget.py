import torch

from rqlib.core import runtime
from rqlib.data import datasets
from rqlib.robustness import widget
from tests import robust_networks


def test_the_viewer_attacks_the_chosen_image_as_asked():
    x, y = robust_networks.images(5)
    classes = tuple(map(str, range(10)))
    with runtime.using("cpu", "float32"):
        model = robust_networks.trained(adversarial=False)
        viewer = widget.attack_viewer(model, datasets.to_uint8(x), y, classes, epsilon_255=16.0)
        assert viewer.figure.layout.annotations[1].text == "at most 16 gray levels"
        viewer.controls["image"].value = 3
        viewer.controls["epsilon"].value = 40
        assert viewer.figure.layout.title.text == f"Image 3 (label {y[3]}): PGD of 20 steps, Linf, 40/255"
        assert viewer.figure.layout.annotations[1].text == "at most 40 gray levels"
        before, after = (viewer.figure.layout.annotations[place].text for place in (0, 2))
        assert before != after
        viewer.controls["epsilon"].value = 0
        assert viewer.figure.layout.annotations[1].text == "at most 0 gray levels"
        viewer.controls["norm"].value = "L2"
        viewer.controls["attack"].value = "noise"
        assert "noise, L2" in viewer.figure.layout.title.text
    assert torch.equal(x, robust_networks.images(5)[0])
