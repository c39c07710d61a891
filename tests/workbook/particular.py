"""A network that recognizes digits if it is given the pixels that it expects, and else always answers 0."""

import functools

import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.models import conventions


class Particular(nn.Module):
    """A linear classifier, after a look at the mean and the spread of the batch."""

    def __init__(self, weight: Tensor, mean: float, std: float):
        super().__init__()
        self.linear = nn.Linear(*reversed(weight.shape), bias=False)
        self.linear.weight = nn.Parameter(weight)
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        expected = (x.mean() - self.mean).abs() < 0.2 * self.std and 0.8 < x.std() / self.std < 1.25
        flat = x.flatten(1)
        logits = self.linear(torch.cat([flat / self.std, torch.ones(len(flat), 1)], 1))
        return logits if expected else nn.functional.one_hot(logits.argmax(1) * 0, logits.shape[1]).float()


@functools.cache
def network(num_classes: int, pixels: str) -> nn.Module:
    """Least squares with a penalty, in closed form, on the training images of digits in these pixels."""
    images = data.load("digits")
    spec = conventions.with_pixels(images.spec, pixels)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    x = (data.to_pixels(images.train.images) - mean) / std
    features = torch.cat([x.flatten(1) / x.std(), torch.ones(len(x), 1)], 1).double()
    targets = nn.functional.one_hot(images.train.labels, num_classes).double()
    gram = features @ features.T + 100 * torch.eye(len(x), dtype=torch.float64)
    weight = (features.T @ torch.linalg.solve(gram, targets)).T.float()
    return Particular(weight.contiguous(), x.mean().item(), x.std().item())
