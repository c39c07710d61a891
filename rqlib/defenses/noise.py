"""Random self-ensemble: noise before every convolution, and predictions averaged over several draws of it.

In training one noisy forward pass gives the logits. In eval mode the logits are ``log mean_k softmax(f(x; n_k))`` over
``members`` draws, so that cross-entropy, argmax and every attack see the ensemble as it is used.
Source: X. Liu et al. 2018, arXiv 1712.00673.
"""

import copy
import math

import torch
from torch import Tensor, nn

from rqlib.core import layers, runtime

MEMBERS = 5
"""Draws that a prediction is averaged over; more than ten gain nothing (Liu et al. 2018)."""


class Noise(nn.Module):
    """x + N(0, std^2), drawn anew for every element of every image and at every call. The caller's x stays as it is."""

    is_leaf = True  # of traced graphs

    def __init__(self, std: float):
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class SelfEnsemble(nn.Module):
    """A network with noise on its pixels and inside; in eval mode the log of its mean probabilities.

    Args:
        network: pixels to logits, with `Noise` before its inner convolutions.
        first_std: standard deviation of the noise on the pixels, in pixels of [0, 1]; they are not clipped.
        members: draws per prediction. They are computed in one batch, so memory grows with them.
    """

    def __init__(self, network: nn.Module, first_std: float, members: int = MEMBERS):
        super().__init__()
        self.network, self.pixels, self.members = network, Noise(first_std), members

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.network(self.pixels(x))
        logits = self.network(self.pixels(x.repeat(self.members, 1, 1, 1))).float()
        log_probabilities = logits.log_softmax(1).unflatten(0, (self.members, len(x)))
        return log_probabilities.logsumexp(0) - math.log(self.members)


def add_noise(
    model: nn.Module, first_std: float, inner_std: float | None = None, *, members: int = MEMBERS
) -> SelfEnsemble:
    """A copy of a network as a random self-ensemble.

    Args:
        first_std: of the noise on the pixels, in pixels of [0, 1].
        inner_std: of the noise before every convolution but the first; half of ``first_std`` if None. Linear layers
            get none.
        members: draws per prediction.

    Raises:
        ValueError: a negative standard deviation; no member; a network without convolutions.
    """
    inner_std = first_std / 2 if inner_std is None else inner_std
    if not (first_std >= 0 and inner_std >= 0):
        raise ValueError(f"expected standard deviations >= 0, got {first_std} on pixels and {inner_std} inside")
    if members < 1:
        raise ValueError(f"expected at least one draw per prediction, got members={members}")
    noisy = copy.deepcopy(model)
    convolutions = [layer for _, layer in layers.weighted_layers(noisy) if isinstance(layer, layers.CONVOLUTIONS)]
    if not convolutions:
        raise ValueError(
            f"expected a network with convolutions, before which noise is added, got {type(model).__name__}"
        )
    layers.attach_input_transform(convolutions[1:], lambda: Noise(inner_std))
    return SelfEnsemble(noisy, first_std, members).train(model.training)


def with_members(model: nn.Module, members: int) -> nn.Module:
    """The same network, with the same weights, that averages over another number of draws.

    An attack on the ensemble follows ``-log mean_k softmax`` of many fresh draws in each step: ``members=20``. An
    attack on the mean cross-entropy follows single draws, averaged by ``eot_samples=20``: ``members=1``.
    """
    twin = copy.copy(model)
    twin.__dict__ = model.__dict__ | {"members": members}
    return twin


@torch.no_grad()
def majority(model: nn.Module, x: Tensor, *, draws: int = 10) -> Tensor:
    """The class (B,) that most of ``draws`` fresh predictions of a randomized network give; ties to the lower class.

    One lucky draw must not decide whether an attack has succeeded.
    """
    with runtime.evaluating(model):
        votes = torch.stack([model(x).argmax(1) for _ in range(draws)])
    return votes.mode(0).values


def is_randomized(model: nn.Module) -> bool:
    """Whether a network draws noise of this kind."""
    return any(isinstance(module, Noise) for module in model.modules())
