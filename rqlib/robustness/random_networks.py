"""Networks that draw noise under attack: gradients averaged over many draws (EOT), answers by majority.

A step along the gradient of one draw is partly undone by the next one, and one lucky draw looks like success: attacked
like any other network, a random self-ensemble looks more robust than it is (Athalye et al. 2018, arXiv 1802.00420).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import attacks
from rqlib.attacks import ascent
from rqlib.attacks.methods import in_words
from rqlib.core import runtime
from rqlib.core.projections import Ball
from rqlib.core.vocabulary import Attack
from rqlib.defenses import majority, noise
from rqlib.measures import evaluate

EOT_SAMPLES = 20
"""A gradient of a network that draws noise is averaged over at least this number of draws."""
VOTES = 10
"""Fresh predictions whose majority is the answer of such a network."""
STEPS = 10
"""Most steps of a long PGD on such a network, of which each costs `EOT_SAMPLES` forward passes."""

_BATCH = 25  # images: with their draws as many as a CPU's cache holds, twice as fast as batches of 200


class Voting(nn.Module):
    """A network that draws noise and answers by the majority of fresh predictions; its logits are 1 or 0.

    The draws depend on the images alone, so that a score can be computed again.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        with ascent.traceless(self.network, x, None), torch.no_grad():
            classes = self.network(x[:1]).shape[1]
            return F.one_hot(majority(self.network, x, draws=VOTES), classes).float()


@dataclass(frozen=True)
class Averaged:
    """An attack that climbs the loss of the network behind `Voting`; networks without noise are attacked as they are.

    Attributes:
        attack: what is done to the network.
        members: draws that one forward pass of a random self-ensemble averages over; None leaves its number.
    """

    attack: Attack
    members: int | None = EOT_SAMPLES

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        network = model.network if isinstance(model, Voting) else model
        if self.members and isinstance(network, noise.SelfEnsemble):
            network = noise.with_members(network, self.members)
        return self.attack(network, x, y)

    def __repr__(self) -> str:
        return f"{in_words(self.attack)} on {self.members} members"


def judge(model: nn.Module) -> nn.Module:
    """What scores a network: itself, or the majority of ten fresh predictions if it draws noise."""
    return Voting(model) if noise.is_randomized(model) else model


def correct(model: nn.Module, images: Tensor, labels: Tensor, **options) -> Tensor:
    """Whether each image is classified as labeled, bool (N,), by what scores the network; as `measures.correct`."""
    small = noise.is_randomized(model) and runtime.active().device.type == "cpu"
    return evaluate.correct(judge(model), images, labels, **options, **({"batch_size": _BATCH} if small else {}))


def eot_samples(model: nn.Module) -> int:
    """Draws that a gradient of this network must be averaged over: 20 if it draws noise, otherwise 1."""
    return EOT_SAMPLES if noise.is_randomized(model) else 1


def without_eot(ball: Ball, steps: int) -> Attack:
    """PGD as on networks without noise: one forward pass per step, and an image that it fools once leaves the batch."""
    return Averaged(attacks.named("pgd", ball=ball, active_set=True, **attacks.pace(ball, steps)), members=None)


def of_the_mean(ball: Ball, steps: int) -> Attack:
    """PGD on ``-log mean_k softmax(f(x; n_k))`` over 20 fresh draws in every step."""
    return Averaged(attacks.named("pgd", ball=ball, **attacks.pace(ball, steps)))


def mean_of_losses(ball: Ball, steps: int) -> Attack:
    """PGD on ``mean_k CE(f(x; n_k), y)`` over 20 fresh draws in every step."""
    climb = attacks.named("pgd", ball=ball, eot_samples=EOT_SAMPLES, **attacks.pace(ball, steps))
    return Averaged(climb, members=1)
