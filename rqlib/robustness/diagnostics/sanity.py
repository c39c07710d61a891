"""Checks that the attack is sound: it stays where it must, changes nothing, finds a known optimum; so was training."""

import torch
from torch import Tensor, nn

from rqlib import attacks
from rqlib.core.projections import Linf
from rqlib.robustness.diagnostics.case import FAIL, PASS, SKIP, WARN, Case, Finding, gain, percent, share
from rqlib.training.overfitting import CATASTROPHIC, ROBUST, flag, largest_fall


def epsilon_zero(case: Case) -> Finding:
    """1. An attack of radius 0 returns the images, and its accuracy is the clean accuracy, exactly."""
    found = case.apply(case.pgd(ball=case.within(0.0)))
    same = torch.equal(found, case.x)
    if not case.randomized:
        same = same and torch.equal(case.wrong(found), case.clean_wrong)
    return Finding(PASS if same else FAIL, f"clean accuracy {percent(1 - share(case.clean_wrong))}")


def inside(case: Case) -> Finding:
    """2. In the ball and in [0, 1] to 1e-6, no NaN; the success survives rounding to 256 gray levels."""
    found, delta = case.adversarial, case.adversarial - case.x
    valid = case.ball.contains(delta) & ((found >= 0) & (found <= 1)).flatten(1).all(1)
    lost, beyond = gain(case.white_box, case.wrong((found * 255).round() / 255))
    value = f"norm at most {case.ball.norm(delta).max():.4f} of {case.ball.epsilon:.4f}; as uint8 {percent(lost)} less"
    if not valid.all():
        return Finding(FAIL, f"{(~valid).sum()} images left the ball or [0, 1]; {value}")
    return Finding(WARN if beyond and lost > 0.01 else PASS, value)


def overfitting(case: Case) -> Finding:
    """17. Robust accuracy on validation images did not fall from its best, nor collapse within one epoch."""
    column = "validation_robust_accuracy"
    if case.history is None or column not in case.history:
        return Finding(SKIP, f"no training log with a column {column} was given")
    robust = case.history[column].dropna().tolist()
    found = flag(robust)
    lost = f"largest fall in an epoch {percent(largest_fall(robust))}"
    value = f"best {percent(max(robust))}, last {percent(robust[-1])}, {lost}"
    status = {CATASTROPHIC: FAIL, ROBUST: WARN}.get(found, PASS)
    return Finding(status, f"{found} overfitting: {value}" if found else value)


def linear_oracle(case: Case) -> Finding:
    """18. On a random linear two-class network PGD reaches the closed-form optimum to 1e-5."""
    ball, rng = case.within(min(case.ball.epsilon, 0.25)), torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(case.x[0].numel(), 2)).to(case.x)
    weight = torch.randn(model[1].weight.shape, generator=rng) / case.x[0].numel() ** 0.5
    model[1].weight.data = weight.to(case.x)
    x, y = torch.full_like(case.x[:8], 0.5), torch.arange(min(8, len(case.x)), device=case.x.device) % 2
    found = attacks.pgd(model, x, y, ball=ball, step_size=ball.epsilon / 4, steps=50)
    sign = 1 - 2 * y
    order = 1 if isinstance(ball, Linf) else 2
    expected = _margin(model, x, sign) - ball.epsilon * (model[1].weight[0] - model[1].weight[1]).norm(p=order)
    error = (_margin(model, found, sign) - expected).abs().max().item()
    return Finding(PASS if error <= 1e-5 * max(1.0, expected.abs().max().item()) else FAIL, f"off by {error:.1e}")


def state_unchanged(case: Case) -> Finding:
    """19. Weights, buffers, gradients, modes, random state and the images are as before an attack."""
    before = _state(case)
    attacks.pgd(case.model, case.x[:8], case.y[:8], ball=case.ball, step_size=case.step_size, steps=2)
    changed = [name for name, value in _state(case).items() if not _equal(value, before[name])]
    return Finding(FAIL if changed else PASS, f"changed: {', '.join(changed)}" if changed else "nothing changed")


def _margin(model: nn.Module, x: Tensor, sign: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    return sign * (logits[:, 0] - logits[:, 1])


def _state(case: Case) -> dict[str, list]:
    parameters = list(case.model.parameters())
    return {
        "weights and buffers": [tensor.clone() for tensor in case.model.state_dict().values()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in parameters],
        "requires_grad": [p.requires_grad for p in parameters],
        "modes": [module.training for module in case.model.modules()],
        "random state": [torch.get_rng_state()],
        "images and labels": [case.x.clone(), case.y.clone()],
    }


def _equal(a: list, b: list) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(p, q) if isinstance(p, Tensor) and isinstance(q, Tensor) else p is q for p, q in pairs)
