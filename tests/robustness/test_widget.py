import torch

from rqlib import attacks, data, measures
from rqlib.robustness import figures, widget
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


def test_the_viewer_shows_the_same_attack_as_the_figure_above_it():
    """An attack that stopped at the border would leave the network barely wrong."""
    images, labels = robust_networks.pictures(1)
    classes, model = tuple(map(str, range(10))), robust_networks.trained(adversarial=False)
    x, ball = data.to_pixels(images), attacks.Linf(40 / 255)
    adversarial = attacks.pgd(model, x, labels, ball=ball, **attacks.pace(ball, 20))
    above = figures.attack_pictures(model, x, adversarial, labels, classes).layout.annotations[2].text
    viewer = widget.attack_viewer(model, images, labels, classes, epsilon_255=40.0)
    assert viewer.figure.layout.annotations[2].text == above
    assert measures.logits(model, adversarial, labels).softmax(1).max() > 0.9
