"""The plane through images that the steepest and a random direction span, and what lies on it: loss, answers."""

import itertools
from dataclasses import dataclass

import pandas
import torch
from torch import Tensor, nn

from rqlib.attacks import ascent
from rqlib.attacks.losses import ce
from rqlib.core import runtime
from rqlib.core.projections import Ball


@dataclass(frozen=True)
class Plane:
    """Images, and two perturbations of length epsilon for each of them.

    Attributes:
        x: (N, C, H, W) in [0, 1].
        along: of the same shape, in the steepest direction of the cross-entropy.
        aside: of the same shape, in a random direction.
    """

    x: Tensor
    along: Tensor
    aside: Tensor

    def at(self, gradient: float | Tensor, random: float | Tensor) -> Tensor:
        """The images moved by so many epsilons in the two directions, within [0, 1].

        Tensors (M, 1, 1, 1) in the place of the two numbers give M images of one image.
        """
        return (self.x + gradient * self.along + random * self.aside).clamp(0, 1)


def through(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, eot_samples: int = 1, seed: int = 0) -> Plane:
    """The plane through each image (N, C, H, W) with label (N,); "steepest" is meant in the norm of the ball."""
    steepest = ball.steepest(loss_gradients(model, x, y, eot_samples=eot_samples, seed=seed))
    noise = torch.randn(x.shape, generator=runtime.rng(seed)).to(x)
    return Plane(x, ball.epsilon * steepest, ball.epsilon * ball.steepest(noise))


def loss_gradients(model: nn.Module, x: Tensor, y: Tensor, *, eot_samples: int = 1, seed: int = 0) -> Tensor:
    """Gradient of the cross-entropy with respect to every image, (N, C, H, W), averaged over draws of the network."""
    with ascent.traceless(model, x, runtime.rng(seed)):
        score = ascent.Score(model, y, ce, draws=eot_samples)
        x = x.detach().clone().requires_grad_()
        return score.gradient(score(x, y)[0], x)


def logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """One forward in eval mode, batch by batch: (N, K)."""
    with runtime.evaluating(model), torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch_size)])


def loss_surface(
    model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, points: int = 21, seed: int = 0
) -> pandas.DataFrame:
    """Mean cross-entropy of images on their planes: columns gradient and random (in epsilons, -1 to 1), and loss.

    Args:
        x, y: images (N, C, H, W) in [0, 1] and labels (N,).
        points: along each axis.
    """
    plane = through(model, x, y, ball=ball, seed=seed)
    moves = itertools.product(torch.linspace(-1, 1, points).tolist(), repeat=2)
    rows = [(a, b, ce(logits(model, plane.at(a, b), 128), y).mean().item()) for a, b in moves]
    return pandas.DataFrame(rows, columns=["gradient", "random", "loss"])


def decision_slice(
    model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, points: int = 61, reach: float = 8.0, seed: int = 0
) -> pandas.DataFrame:
    """Answers of a network on the plane through one image: columns gradient, random (in epsilons), and prediction.

    Args:
        x, y: one image (1, C, H, W) in [0, 1] and its label (1,).
        points: along each axis, an odd number.
        reach: the axes go from -reach to reach.
    """
    plane = through(model, x, y, ball=ball, seed=seed)
    ticks = torch.arange(-(points // 2), points // 2 + 1) / (points // 2) * reach
    a, b = (part.flatten().to(x) for part in torch.meshgrid(ticks, ticks, indexing="ij"))
    moved = plane.at(a.view(-1, 1, 1, 1), b.view(-1, 1, 1, 1))
    predictions = logits(model, moved, 512).argmax(1)
    return pandas.DataFrame({"gradient": a.cpu(), "random": b.cpu(), "prediction": predictions.cpu()})
