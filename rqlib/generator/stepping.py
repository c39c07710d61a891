"""One optimizer step of a generator against its teacher, and the state that is kept between steps.

Loss = CE(teacher(x), mixture) + 0.1 mean over BatchNorms of their distance. A teacher without BatchNorm has kept no
statistics of its training images; the total variation of the images, a prior for smooth images, takes their place.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.core import runtime
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack
from rqlib.generator import batchnorm
from rqlib.generator.network import Generator

PRIOR_WEIGHTS = {"batchnorm_distance": 0.1, "total_variation": 1.0}
ADVERSARIAL_WEIGHT = 0.5


class Training:
    """A generator in training, its optimizer, and the rows of figures so far.

    After every row the whole state is written to the checkpoint, from which an interrupted training goes on.

    Args:
        settings: plain values that, together with the weights of both networks, tell this training from others.
    """

    def __init__(
        self, generator: Generator, teacher: nn.Module, checkpoint: str | Path | None, lr: float, settings: dict
    ):
        self.generator, self.rows = runtime.active().place(generator), []
        networks = {"start": generator, "teacher": teacher}
        prints = {name: fingerprint(network.state_dict()) for name, network in networks.items()}
        self.resumable = Resumable(checkpoint, settings | {"first_lr": lr} | prints, kind="training")
        self.optimizer = torch.optim.Adam(generator.parameters(), lr, betas=(0.5, 0.999))
        if state := self.resumable.load(generator.embedding.device):
            self.generator.load_state_dict(state["generator"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.rows = state["rows"]

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """The generator is in train mode while the block runs, and in eval mode afterwards."""
        try:
            self.generator.train()
            yield
        finally:
            self.generator.eval()

    def add(self, row: dict) -> None:
        """Add a row and write the state.

        Raises:
            FloatingPointError: the loss in the row is not finite; then nothing is added or written.
        """
        if not torch.tensor(row.get("loss", 0.0)).isfinite():
            path = self.resumable.path
            kept = f"{path} holds the state after {len(self.rows)}" if path else "none was kept"
            raise FloatingPointError(
                f"loss {row['loss']} in epoch or round {len(self.rows) + 1} of the generator: {kept}. Lower the "
                "learning rate, or see whether the teacher's logits and BatchNorm statistics are finite"
            )
        self.rows.append(row)
        state = {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.resumable.save(**state, rows=self.rows)


@contextlib.contextmanager
def frozen(teacher: nn.Module) -> Iterator[nn.Module]:
    """The teacher is in eval mode and its weights need no gradients while the block runs.

    Afterwards its modes and its weights are as they were before, also after an exception.
    """
    wanted = {parameter: parameter.requires_grad for parameter in teacher.parameters()}
    with runtime.evaluating(runtime.active().place(teacher)):
        try:
            yield teacher.requires_grad_(False)
        finally:
            for parameter, value in wanted.items():
                parameter.requires_grad_(value)


def step(
    training: Training, teacher: nn.Module, mixture: Tensor, rng: torch.Generator, attack: Attack | None = None
) -> dict[str, Tensor]:
    """Take one optimizer step, towards images that are classified as the mixture (B, K); returns the parts of the loss.

    An attack adds 0.5 CE of the attacked copies of the images. The perturbation counts as constant: no gradient flows
    through the attack.
    """
    policy, generator = runtime.active(), training.generator
    noise = torch.randn(len(mixture), generator.embedding.shape[1], generator=rng)
    mixture, noise = policy.place(mixture), policy.place(noise)
    with policy.autocast():
        x = generator(mixture, noise)
        with batchnorm.watching(teacher) as distances:
            logits = teacher(x).float()
        adversarial = _adversarial_loss(teacher, x, mixture, attack) if attack else 0.0
    ce, (name, prior) = F.cross_entropy(logits, mixture), _prior(x, distances)
    loss = ce + PRIOR_WEIGHTS[name] * prior + ADVERSARIAL_WEIGHT * adversarial
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    training.optimizer.step()
    asked = (logits.argmax(1) == mixture.argmax(1)).float().mean()
    parts = {"loss": loss, "cross_entropy": ce, name: prior, "class_accuracy": asked}
    return {name: value.detach() for name, value in parts.items()}


def mean(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each part of the loss over steps."""
    return {name: torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}


def _adversarial_loss(teacher: nn.Module, x: Tensor, mixture: Tensor, attack: Attack) -> Tensor:
    moved = attack(teacher, x.detach(), mixture.argmax(1)) - x.detach()
    return F.cross_entropy(teacher(x + moved).float(), mixture)


def _prior(x: Tensor, distances: list[Tensor]) -> tuple[str, Tensor]:
    if distances:
        return "batchnorm_distance", torch.stack(distances).mean()
    return "total_variation", sum(x.diff(dim=axis).abs().mean() for axis in (2, 3))
