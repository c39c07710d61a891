import torch

from rqlib.robustness import widget
from tests import robust_networks


def test_the_viewer_attacks_the_chosen_image_as_asked():
    images, labels = robust_networks.pictures(5)
    classes = tuple(map(str, range(10)))
    model = robust_networks.trained(adversarial=False)
    viewer = widget.attack_viewer(model, images, labels, classes, epsilon_255=16.0)
    assert viewer.figure.layout.annotations[1].text == "at most 16 gray levels"
    viewer.controls["image"].value = 3
    viewer.controls["epsilon"].value = 40
    assert viewer.figure.layout.title.text == f"Image 3 (label {labels[3]}): PGD of 20 steps, Linf, 40/255"
    assert viewer.figure.layout.annotations[1].text == "at most 40 gray levels"
    before, after = (viewer.figure.layout.annotations[place].text for place in (0, 2))
    assert before != after
    viewer.controls["epsilon"].value = 0
    assert viewer.figure.layout.annotations[1].text == "at most 0 gray levels"
    viewer.controls["norm"].value = "L2"
    viewer.controls["attack"].value = "noise"
    assert "noise, L2" in viewer.figure.layout.title.text
    assert torch.equal(images, robust_networks.pictures(5)[0])
