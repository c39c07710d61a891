"""Twenty checks that an attack was strong enough to believe the robustness that it reports.

Randomized, rounded and clipped networks hide their gradients, and a hidden gradient looks like robustness. Each check
is a function of a `Case`: the network, its images, and the attacks already run on it. The table `CHECKS` numbers the
checks (after Carlini et al. 2019, arXiv 1902.06705, and Athalye et al. 2018, arXiv 1802.00420).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas
import torch
from torch import Tensor, nn

from rqlib import attacks
from rqlib.attacks import ascent
from rqlib.core import runtime
from rqlib.core.projections import Ball
from rqlib.defenses import noise
from rqlib.robustness.diagnostics import gradients, sanity, strength
from rqlib.robustness.diagnostics.case import SKIP, Case, Finding

__all__ = ["CHECKS", "STATUSES", "Check", "diagnose"]

STATUSES = {
    "PASS": "nothing speaks against the figure",
    "WARN": "look at the value: the attack could be somewhat stronger",
    "FAIL": "the network may be less robust than it looks; do not claim the figure before you know why",
    "SKIP": "not run: it does not concern this network, or takes minutes (all_checks)",
}
"""Status of a check -> what it means for whoever reads the robust accuracy."""


@dataclass(frozen=True)
class Check:
    """A check: a row of the table. Its meaning is the first line of the function's docstring."""

    number: int
    name: str
    function: Callable[[Case], Finding]
    fast: bool = True

    @property
    def meaning(self) -> str:
        """What holds if the check passes."""
        return self.function.__doc__.split("\n", 1)[0].partition(". ")[2]

    def row(self, case: Case) -> dict:
        """Run the check, if it is fast or the case is to be checked in full; its row of the table of `diagnose`."""
        skipped = Finding(SKIP, "takes longer: full=True")
        found = self.function(case) if self.fast or case.full else skipped
        return {"number": self.number, "name": self.name, **found._asdict(), "meaning": self.meaning}


CHECKS = (
    Check(1, "epsilon 0", sanity.epsilon_zero),
    Check(2, "inside the ball", sanity.inside),
    Check(3, "order of strength", strength.order_of_strength),
    Check(4, "growing epsilon", strength.growing_epsilon),
    Check(5, "more steps", strength.more_steps, fast=False),
    Check(6, "more restarts", strength.more_restarts, fast=False),
    Check(7, "loss climbs", strength.loss_climbs),
    Check(8, "zero gradients", gradients.zero_gradients),
    Check(9, "scale of logits", strength.scale_of_logits),
    Check(10, "transfer", strength.transfer),
    Check(11, "gradient-free", strength.gradient_free, fast=False),
    Check(12, "same forward", gradients.same_forward),
    Check(13, "enough draws", gradients.enough_draws, fast=False),
    Check(14, "fresh noise", gradients.fresh_noise),
    Check(15, "cut gradients", gradients.cut_gradients),
    Check(16, "adaptive minimum", strength.adaptive_minimum),
    Check(17, "robust overfitting", sanity.overfitting),
    Check(18, "linear oracle", sanity.linear_oracle),
    Check(19, "state unchanged", sanity.state_unchanged),
    Check(20, "uphill", gradients.uphill),
)


def diagnose(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    step_size: float | None = None,
    steps: int = 20,
    eot_samples: int = 1,
    full: bool = False,
    others: Mapping[str, nn.Module] | None = None,
    twins: Mapping[str, nn.Module] | None = None,
    history: pandas.DataFrame | None = None,
    batch_size: int = 128,
) -> pandas.DataFrame:
    """Check how far the robust accuracy of a network under PGD can be believed; everything is computed in float32.

    A random self-ensemble is checked as one draw per forward pass: its gradients are averaged by ``eot_samples``, at
    least 20, and its answer is that of the mean of ten draws.

    Args:
        x, y: images (N, C, H, W) float32 in [0, 1] and labels (N,); a few hundred images are enough.
        ball, step_size, steps, eot_samples: the PGD whose figure is to be believed (`attacks.pgd`); the step size is
            that of `attacks.pace` by default.
        full: run all checks, each with more settings; by default only those that take seconds.
        others: name -> another network for the same images, from which adversarial images are transferred.
        twins: name -> differentiable twin of a network that rounds or is noisy: with straight-through gradients, in
            float, or without noise.
        history: the training log of `training.fit`.
        batch_size: number of images that pass the network at once.

    Returns:
        One row per check, in order of their numbers: number, name, status (PASS, WARN, FAIL; SKIP if the check does
        not apply or was not asked for), value (the figures), meaning (what a PASS says).

    Raises:
        ValueError: no images; x not in [0, 1] or y not its labels.
    """
    ascent.check_images(x, y)
    if not len(x):
        raise ValueError("expected at least one image to check, got none")
    place = runtime.active().place
    model = noise.with_members(model, 1) if isinstance(model, noise.SelfEnsemble) else model
    length = attacks.pace(ball, steps)["step_size"] if step_size is None else step_size
    case = Case(
        *(place(model), place(x), place(y)),
        *(ball, length, steps, eot_samples),
        others={name: place(other) for name, other in (others or {}).items()},
        twins={name: place(twin) for name, twin in (twins or {}).items()},
        history=history,
        full=full,
        batch_size=batch_size,
    )
    # The unchanged state is checked before anything could change it, the adaptive minimum after all attacks.
    first, last = sanity.state_unchanged, strength.adaptive_minimum
    order = sorted(CHECKS, key=lambda check: (check.function is last) - (check.function is first))
    with runtime.exact(), torch.autocast(case.x.device.type, enabled=False):
        rows = [check.row(case) for check in runtime.progress(order, "checks")]
    return pandas.DataFrame(rows).sort_values("number", ignore_index=True)
