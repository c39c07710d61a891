"""The attack viewer: choose an image and an attack, and see at once what the attack does."""

import ipywidgets
import plotly.graph_objects as go
from torch import Tensor, nn

from rqlib import data
from rqlib.core import runtime, widgets
from rqlib.core.entry import classifier
from rqlib.core.projections import BALLS
from rqlib.measures import evaluate
from rqlib.robustness import curves, figures


def attack_viewer(
    model: nn.Module, images: Tensor, labels: Tensor, classes: tuple[str, ...], *, epsilon_255: float = 8.0
) -> widgets.Explorer:
    """Controls for image, attack, norm, epsilon and steps above the image, its change, and the network's answers.

    Epsilon is in gray levels. An L2 ball is as large as a change of that size in every pixel.

    Args:
        images, labels: uint8 (N, C, H, W), int64 (N,), to choose from.
        epsilon_255: where the slider starts.
    """
    policy = runtime.active()
    model = policy.place(classifier(model))
    twin = evaluate.fast_twin(model, policy.place(data.to_pixels(images[:16])))
    kinds = [name.rstrip("-0123456789") for name in curves.makers(1)]

    def draw(image: int, attack: str, norm: str, epsilon: float, steps: int) -> go.Figure:
        x, y = next(data.batches(images[image : image + 1], labels[image : image + 1], 1))
        radius = epsilon / 255 if norm == "Linf" else epsilon / 255 * x[0].numel() ** 0.5
        makers = dict(zip(kinds, curves.makers(steps, active_set=False).values(), strict=True))
        with policy.autocast():
            adversarial = makers[attack](BALLS[norm](radius))(twin, x, y)
        words = f"{attack}{f' of {steps} steps' if attack == 'PGD' else ''}, {norm}, {epsilon:g}/255"
        title = f"Image {image} (label {classes[labels[image]]}): {words}"
        return figures.attack_pictures(model, x, adversarial, y.cpu(), classes, title=title)

    slide = {"continuous_update": False}
    return widgets.explorer(
        draw,
        image=ipywidgets.IntSlider(0, 0, len(images) - 1, description="image", **slide),
        attack=ipywidgets.Dropdown(options=kinds, value="PGD", description="attack"),
        norm=ipywidgets.Dropdown(options=list(BALLS), description="norm"),
        epsilon=ipywidgets.FloatSlider(epsilon_255, min=0, max=64, step=1, description="epsilon", **slide),
        steps=ipywidgets.IntSlider(20, 1, 100, description="steps", **slide),
    )
