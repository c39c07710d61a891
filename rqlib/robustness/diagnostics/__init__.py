"""Honest evaluation: twenty checks that an attack was strong enough to believe the robustness it reports.

Randomized, rounded and clipped networks hide their gradients; a hidden gradient looks like robustness.
Each check is a function of a `Case` (the network, its images and the attacks already run on it); the
table `CHECKS` numbers them (after Carlini et al. 2019, arXiv 1902.06705; Athalye et al. 2018, arXiv 1802.00420).
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
from rqlib.robustness.diagnostics import gradients, sanity, strength
from rqlib.robustness.diagnostics.case import SKIP, Case, Finding
from rqlib.robustness.diagnostics.gradients import directions, loss_surface

__all__ = ["CHECKS", "Check", "directions", "loss_surface", "run"]


@dataclass(frozen=True)
class Check:
    """One row of the table; its meaning is the first line of the function's docstring."""

    number: int
    name: str
    function: Callable[[Case], Finding]
    fast: bool = True

    @property
    def meaning(self) -> str:
        """What holds where the check passes."""
        return self.function.__doc__.split("\n", 1)[0].partition(". ")[2]


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


def run(
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
    """Check how far the robust accuracy of a network under PGD can be believed.

    Args:
        x, y: images (N, C, H, W) float32 in [0, 1] and labels (N,); a few hundred tell.
        ball, step_size, steps, eot_samples: the PGD whose figure is to be believed (`attacks.pgd`);
            the step size is that of `attacks.pace` by default.
        full: all checks, with more settings each; by default those that take seconds.
        others: name -> another network for the same images, attacked to transfer.
        twins: name -> a differentiable twin of a network that rounds or is noisy (STE, float, noise-free).
        history: the training log of `training.fit`.

    Returns:
        One row a check, in order: number, name, status (PASS, WARN, FAIL; SKIP where it does not
        apply or was not asked for), value (the figures), meaning (what a PASS says).

    Raises:
        ValueError: no images; x not in [0, 1] or y not its labels.
    """
    ascent.check_images(x, y)
    if not len(x):
        raise ValueError("expected at least one image to check, got none")
    place = runtime.active().place
    length = attacks.pace(ball, steps)["step_size"] if step_size is None else step_size
    case = Case(
        place(model),
        place(x),
        place(y),
        ball,
        length,
        steps,
        eot_samples,
        {name: place(other) for name, other in (others or {}).items()},
        {name: place(twin) for name, twin in (twins or {}).items()},
        history,
        full,
        batch_size,
    )
    with torch.autocast(case.x.device.type, enabled=False):
        findings = {check: _finding(check, case) for check in runtime.progress(_in_order(), "checks")}
    rows = [
        {"number": check.number, "name": check.name, **findings[check]._asdict(), "meaning": check.meaning}
        for check in CHECKS
    ]
    return pandas.DataFrame(rows)


def _finding(check: Check, case: Case) -> Finding:
    if not (check.fast or case.full):
        return Finding(SKIP, "takes longer: full=True")
    return check.function(case)


def _in_order() -> list[Check]:
    """Unchanged state first, before anything could change it; the adaptive minimum last, after all attacks."""
    first, last = sanity.state_unchanged, strength.adaptive_minimum
    return sorted(CHECKS, key=lambda check: (check.function is last) - (check.function is first))
