"""Checks of gradients: they are not zero, not cut, not hidden by noise, and point uphill."""

import torch
import torch.nn.functional as F
from torch import nn

from rqlib.attacks import ascent, losses, straight_through
from rqlib.core import runtime
from rqlib.quantization import fake_quantize
from rqlib.quantization.fake_quantize import Quantized
from rqlib.robustness import plane
from rqlib.robustness.diagnostics.case import FAIL, PASS, SKIP, WARN, Case, Finding, gain, percent, share


def zero_gradients(case: Case) -> Finding:
    """8. Hardly an image has a zero gradient, and the margin loss fools no more images than cross-entropy."""
    norms = case.gradients().flatten(1).norm(dim=1)
    zero, finite = share(~(norms > 0)), norms.isfinite()
    margin = case.broken_by("PGD, margin", case.pgd(loss="margin"))
    more, beyond = gain(margin, case.white_box)
    saturated = beyond and more > 0.02
    value = f"zero for {percent(zero)}, median norm {norms.nanmedian():.2g}; margin loss fools {percent(more)} more"
    if not finite.all():
        value = f"NaN or infinite for {percent(share(~finite))}; {value}"
    return Finding(FAIL if zero > 0.05 or saturated else WARN if zero > 0 or beyond else PASS, value)


def same_forward(case: Case) -> Finding:
    """12. Five forwards agree, in any order of the images; if not, gradients are averaged over draws (EOT)."""
    value = f"logits differ by {case.spread:.1e} of the largest"
    if not case.randomized:
        return Finding(PASS, value)
    if (case.forwards[:-1] == case.forwards[0]).all():
        return Finding(FAIL, f"frozen noise: {value} with the position in the batch, yet not from call to call")
    if case.given_eot_samples == 1:
        value = f"randomized, {value}, and attacked without EOT; forced to {case.eot_samples} samples here"
        return Finding(FAIL, value)
    if case.drawn <= ascent.RANDOMIZED:
        return Finding(FAIL, f"randomized, {value}, but its {case.given_eot_samples} EOT samples are all the same draw")
    return Finding(PASS, f"randomized, {value}; attacked with {case.given_eot_samples} EOT samples")


def enough_draws(case: Case) -> Finding:
    """13. Success levels off with the number of EOT samples, and independent EOT gradients agree."""
    if not case.randomized:
        return Finding(SKIP, "the network is deterministic")
    counts = (1, 5, 20, 100) if case.full else (1, 5, 20)
    runs = [case.wrong(case.apply(case.pgd(eot_samples=count))) for count in counts]
    pair = (case.gradients(eot_samples=counts[-1], seed=seed).flatten(1) for seed in (1, 2))
    cosine = F.cosine_similarity(*pair).median().item()
    draws = torch.stack([case.logits(case.adversarial) for _ in range(10)])
    mean_loss = torch.stack([losses.ce(logits, case.y) for logits in draws]).mean().item()
    loss_of_mean = losses.ce(draws.mean(0), case.y).mean().item()
    value = "errors " + ", ".join(f"{percent(share(run))} at {count}" for run, count in zip(runs, counts, strict=True))
    value += f"; cosine {cosine:.2f}; mean loss {mean_loss:.2f}, loss of the mean {loss_of_mean:.2f}"
    more, beyond = gain(runs[-1], runs[-2])
    return Finding(FAIL if beyond and more > 0.02 else WARN if cosine < 0.3 else PASS, value)


def fresh_noise(case: Case) -> Finding:
    """14. A randomized network is scored with fresh noise, by at least ten predictions."""
    if not case.randomized:
        return Finding(SKIP, "the network is deterministic")
    draws = torch.stack([case.logits(case.adversarial) for _ in range(10)])
    accuracies = (draws.argmax(2) == case.y).double().mean(1)
    mean, deviation = accuracies.mean().item(), accuracies.std().item()
    value = f"ten predictions: accuracy {percent(mean)}, from draw to draw {percent(deviation)}"
    frozen = (draws == draws[0]).all().item()
    return Finding(FAIL if frozen else PASS, f"the same noise in ten predictions; {value}" if frozen else value)


def cut_gradients(case: Case) -> Finding:
    """15. Straight-through gradients and differentiable twins fool no more images; the minimum is reported.

    A network of `quantization.ptq` needs its float twin too: without one the best outcome is a WARN.
    """
    quantized = any(isinstance(module, Quantized) for module in case.model.modules())
    through = straight_through.StraightThrough(case.model)
    with runtime.evaluating(through):
        through(case.x[:1].detach().requires_grad_())
    views: dict[str, nn.Module] = dict(case.twins)
    if through.cuts:
        views["straight-through"] = through
    if quantized:
        views["past the clipping"] = fake_quantize.unmasked(case.model)
    if not views:
        return Finding(PASS, "nothing is rounded or clamped on the way, and no twin was given")
    runs = {name: case.broken_by(f"PGD, {name}", case.pgd(), model) for name, model in views.items()}
    strongest = max(runs, key=lambda name: share(runs[name]))
    beyond = any(gain(mask, case.white_box)[1] for mask in runs.values())
    lowest = 1 - share(torch.stack([case.white_box, *runs.values()]).any(0))
    value = f"white-box {percent(share(case.white_box))}, {strongest} {percent(share(runs[strongest]))}"
    value += f"; minimum robust accuracy {percent(lowest)}"
    if beyond or case.twins or not quantized:
        return Finding(FAIL if beyond else PASS, value)
    return Finding(WARN, f"{value}; no float twin was given (twins={{'float': network}})")


def uphill(case: Case) -> Finding:
    """20. The loss rises more along the gradient than along a random direction of the same length."""
    around = plane.through(case.model, case.x, case.y, ball=case.ball, eot_samples=case.eot_samples)
    start = case.losses(case.x)
    rises = [case.losses((case.x + step).clamp(0, 1)) - start for step in (around.along, around.aside)]
    difference = (rises[0] - rises[1]).double()
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    value = f"mean rise {rises[0].mean():.3g} along the gradient, {rises[1].mean():.3g} along a random direction"
    return Finding(PASS if difference.mean() > 2 * error else FAIL, value)
