"""A network of which half of the channels are really removed, against the dense one, in float32."""

import torch

from benchmarks import row
from rqlib import models, pruning
from rqlib.core import parametrizations, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost

BATCH = 64


def removed_and_dense(name: str) -> dict:
    """One row: forwards of both, after their zeroed twin has been shown to give the smaller one's logits."""
    torch.manual_seed(0)
    spec, place = ImageSpec(), runtime.active().place
    dense, x = place(models.build(name, spec)), place(torch.rand(BATCH, *spec.shape))
    with torch.no_grad():
        dense.train()(x)  # plausible BatchNorm statistics
        half = pruning.magnitude_masks(dense.eval(), 0.5, structure="filters", image=x[:1])
        zeroed = parametrizations.bake(pruning.apply_masks(dense, half))
        small = place(pruning.remove_channels(zeroed, x[:1]))
        logits = zeroed(x)
        gap = ((small(x) - logits).abs().max() / logits.abs().max()).item()
        assert gap < 1e-4, f"expected equal logits, got a relative gap of {gap:.1e}"
        before, after = (cost.totals(cost.profile(network, spec)) for network in (dense, small))
        shares = ", ".join(f"{after[key] / before[key]:.3f} of the {key}" for key in ("params", "macs"))
        work = f"{name}, half of the channels removed, {BATCH} images: {shares}"
        agree = f"logits of the zeroed network, relative gap {gap:.0e}"
        return row(work, "the dense network", lambda: small(x), lambda: dense(x), at_least=1.5, agree=agree)


def measure() -> list[dict]:
    """Convolutions that keep the processor busy, with additions and without, and depthwise ones."""
    with runtime.using("cpu", "float32"):
        return [removed_and_dense(name) for name in ("VGG_16", "ResNet_18", "MobileNetV2")]
