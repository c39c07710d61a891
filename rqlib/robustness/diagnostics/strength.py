"""Checks that the attack is as strong as it could be: beside weaker, longer, transferred and gradient-free attacks."""

from functools import partial

import torch
from torch import Tensor, nn

from rqlib import attacks
from rqlib.attacks import autoattack
from rqlib.robustness.diagnostics.case import FAIL, PASS, SKIP, WARN, Case, Finding, gain, percent, share


def order_of_strength(case: Case) -> Finding:
    """3. PGD fools at least as often as FGSM, and FGSM as often as noise, at each epsilon."""
    lines, worst = [], PASS
    for factor in (0.5, 1.0, 2.0) if case.full else (1.0,):
        ball = case.within(min(factor * case.ball.epsilon, case.ball.whole(case.x).epsilon))
        weak = partial(attacks.noise, ball=ball, eot_samples=case.eot_samples)
        one = partial(attacks.fgsm, ball=ball, eot_samples=case.eot_samples)
        if factor == 1:
            runs = [case.broken_by("noise", weak), case.broken_by("FGSM", one), case.white_box]
        else:
            strong = case.pgd(ball=ball, step_size=factor * case.step_size)
            runs = [case.wrong(case.apply(attack)) for attack in (weak, one, strong)]
        lines.append(" <= ".join(percent(share(mask)) for mask in runs))
        if any(gain(weaker, stronger)[1] for weaker, stronger in zip(runs, runs[1:], strict=False)):
            worst = FAIL
    return Finding(worst, "noise <= FGSM <= PGD: " + "; ".join(lines))


def growing_epsilon(case: Case) -> Finding:
    """4. Success does not fall as epsilon grows, and the ball around everything reaches 100%."""
    whole = case.ball.whole(case.x).epsilon
    radii = [factor * case.ball.epsilon for factor in ((0.25, 0.5, 1.0, 2.0) if case.full else (0.5, 1.0))]
    runs = [case.clean_wrong]
    for radius in [*(radius for radius in radii if radius < whole), whole]:
        step_size = case.step_size * radius / max(case.ball.epsilon, 1e-12)
        runs.append(case.wrong(case.apply(case.pgd(ball=case.within(radius), step_size=step_size))))
    falls = any(gain(smaller, larger)[1] for smaller, larger in zip(runs, runs[1:], strict=False))
    value = "errors " + ", ".join(percent(share(mask)) for mask in runs) + f" up to epsilon {whole:.3g}"
    return Finding(FAIL if falls or not runs[-1].all() else PASS, value)


def more_steps(case: Case) -> Finding:
    """5. Steps 10, 20, 50, 100: the last doubling gains less than half a point."""
    ever = case.trace(steps=100).fooled.cummax(0).values
    at = {steps: ever[steps] for steps in (10, 20, 50, 100)}
    more, beyond = gain(at[100], at[50])
    case.broken["PGD-100"] = at[100] if not case.randomized else case.white_box
    status = PASS if more < 0.005 else FAIL if beyond else WARN
    return Finding(status, "errors " + ", ".join(f"{percent(share(mask))} at {steps}" for steps, mask in at.items()))


def more_restarts(case: Case) -> Finding:
    """6. Restarts 1, 5, 20: what one restart fools stays fooled; the gain is small."""
    counts = (1, 5, 20)
    runs = [case.broken_by(f"PGD, {count} restarts", case.pgd(restarts=count)) for count in counts]
    lost = any((few & ~many).any() for few, many in zip(runs, runs[1:], strict=False))
    more, beyond = gain(runs[-1], runs[0])
    errors = [f"{percent(share(mask))} at {count}" for mask, count in zip(runs, counts, strict=True)]
    value = "errors " + ", ".join(errors)
    if lost and not case.randomized:
        return Finding(FAIL, f"an image was fooled and is not: {value}")
    return Finding(WARN if beyond and more > 0.02 else PASS, f"{value}; gain {percent(more)}")


def loss_climbs(case: Case) -> Finding:
    """7. The mean loss rises from the start, and the last step is near the best."""
    losses = case.trace().losses
    mean = losses.mean(1)
    overshot = share(losses[-1] < losses.amax(0) - 1e-6)
    value = f"mean loss {mean[0]:.3g} -> {mean[-1]:.3g}; the last step is not the best for {percent(overshot)}"
    climbs = mean.max() > mean[0] + 1e-6 * mean[0].abs() and losses.isfinite().all()
    return Finding(FAIL if not climbs else WARN if mean[-1] < 0.9 * mean.max() else PASS, value)


class Scaled(nn.Module):
    """A network whose logits are multiplied by a factor: the same decisions, another softmax."""

    def __init__(self, network: nn.Module, factor: float):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.network(x) * self.factor


def scale_of_logits(case: Case) -> Finding:
    """9. Logits times 10 and divided by 10 leave the success of the DLR loss as it is."""
    if case.forwards.shape[-1] < 3:
        return Finding(SKIP, "the DLR loss needs three classes")
    attack = case.pgd(loss="dlr")
    runs = [case.broken_by("PGD, DLR", attack)]
    runs += [case.wrong(case.apply(attack, Scaled(case.model, factor))) for factor in (10.0, 0.1)]
    changes = [gain(*pair) for run in runs[1:] for pair in ((run, runs[0]), (runs[0], run))]
    largest, _ = max(changes)
    moved = any(beyond and change > 0.01 for change, beyond in changes)
    return Finding(FAIL if moved else PASS, f"errors {percent(share(runs[0]))}, changed by {percent(largest)}")


def transfer(case: Case) -> Finding:
    """10. White-box fools at least as often as images transferred from each other network."""
    if not case.others:
        return Finding(SKIP, "no other networks were given (others={name: network})")
    runs = {name: case.broken_by(f"transfer from {name}", case.pgd(), model) for name, model in case.others.items()}
    strongest = max(runs, key=lambda name: share(runs[name]))
    beyond = any(gain(mask, case.white_box)[1] for mask in runs.values())
    value = f"white-box {percent(share(case.white_box))}, from {strongest} {percent(share(runs[strongest]))}"
    return Finding(FAIL if beyond else PASS, value)


def gradient_free(case: Case) -> Finding:
    """11. Square, which needs no gradient, breaks at most 0.2 points beyond white-box."""
    if not autoattack.is_installed():
        return Finding(SKIP, "the optional package pyautoattack is not installed")
    fooled = case.broken_by("Square", partial(autoattack.square, ball=case.ball, queries=1000))
    more, beyond = gain(fooled | case.white_box, case.white_box)
    status = PASS if more <= 0.002 else FAIL if beyond else WARN
    return Finding(status, f"white-box {percent(share(case.white_box))}, Square {percent(more)} beyond")


def adaptive_minimum(case: Case) -> Finding:
    """16. Accuracy that survives, image by image, every attack run in these checks; near the white-box figure."""
    masks = [case.white_box, *case.broken.values()]
    everything = max(masks, key=share) if case.randomized else torch.stack(masks).any(0)
    more, beyond = gain(everything, case.white_box)
    status = PASS if more < 0.02 or not beyond else FAIL if more > 0.05 else WARN
    value = f"robust accuracy {percent(1 - share(case.white_box))}, minimum over {len(case.broken)} attacks"
    return Finding(status, f"{value} {percent(1 - share(everything))}")
