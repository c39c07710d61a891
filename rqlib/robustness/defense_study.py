"""The study of defenses: many trained networks, by variant, seed and radius, all attacked in the same way."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import attacks
from rqlib.core import runtime
from rqlib.core.projections import Linf
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack
from rqlib.defenses.noise import is_randomized
from rqlib.robustness import random_networks, withstanding
from rqlib.robustness.random_networks import Averaged

VARIANTS = ("original", "adversarial", "quantized", "regularized", "Q+A", "Q+R", "A+R", "Q+A+R", "RSE")
"""The nine variants; Q is quantized, A adversarial, R regularized, RSE a random self-ensemble."""

_REPORT = {"step_size": 2 / 255, "steps": 4, "report_exact": True}


@dataclass(frozen=True)
class Trained:
    """A trained network of the study, which is opened only while it is attacked.

    Attributes:
        variant: a name of `VARIANTS`, ``leaky``, or another.
        seed: of its weights and of the order of its images.
        epsilon_255: radius of the attack that it was trained against, in gray levels of 255; NaN if there was none.
        open: makes the network, in eval mode.
        history: makes its training log (`training.fit`); None if there is none.
    """

    variant: str
    seed: int
    epsilon_255: float
    open: Callable[[], nn.Module]
    history: Callable[[], DataFrame] | None = None

    def __str__(self) -> str:
        radius = "" if math.isnan(self.epsilon_255) else f", trained at {self.epsilon_255:g}/255"
        return f"{self.variant}, seed {self.seed}{radius}"


def study(
    networks: Iterable[Trained],
    images: Tensor,
    labels: Tensor,
    *,
    epsilons_255: Sequence[float] = (),
    steps: int = 20,
    checkpoint: str | Path | None = None,
) -> DataFrame:
    """Attack every network: one that was trained at a radius at this radius, the others at every radius.

    One row per network and radius, with the columns variant, seed, trained_255 (radius of its training, NaN without
    one), epsilon_255 (radius of the attack) and these fractions of all images:

    - clean_accuracy: right without an attack;
    - ce_accuracy, margin_accuracy: right under PGD on the cross-entropy, on the margin, in pixels;
    - robust_accuracy: right under both;
    - success_rate: fooled by one of the two, of those that were right before;
    - report_accuracy: right in the geometry of the first report: four steps of 2/255 in the normalized input.

    A network that draws noise answers by the majority of ten fresh predictions, and gradients are averaged over 20
    draws (EOT). Its two losses are ``-log mean softmax`` (ce_accuracy) and the mean cross-entropy of the draws
    (mean_ce_accuracy); robust_accuracy is the lower of the two. without_eot_accuracy is what it would seem to be.

    Everything is computed in float32. At any time only one network is open.

    Args:
        images, labels: uint8 (N, C, H, W), int64 (N,).
        epsilons_255: radii in gray levels of 255; those of the trainings are added.
        steps: of PGD, of the length of `attacks.pace`; on networks that draw noise at most 10.
        checkpoint: file of the rows of finished networks, from which an interrupted study goes on. A network whose
            weights have changed since is attacked again.

    Raises:
        ValueError: no networks; two of the same variant, seed and radius; no radius; the file is of other images or
            attacks.
    """
    networks = list(networks)
    radii = _radii(networks, epsilons_255)
    identity = {"images": fingerprint(images, labels), "steps": steps, "draws": random_networks.EOT_SAMPLES}
    state = Resumable(checkpoint, identity, kind="study")
    done, rows = state.load().get("done", {}), []
    with runtime.exact():
        for one in runtime.freeing(runtime.progress(networks, "networks")):
            model = one.open()
            attacked = radii if math.isnan(one.epsilon_255) else [one.epsilon_255]
            key = fingerprint(str(one), attacked, model.state_dict(), repr(model))
            if key not in done:
                done[key] = _attacked(model, images, labels, attacked, steps)
                state.save(done=done)
            named = {"variant": one.variant, "seed": one.seed, "trained_255": one.epsilon_255}
            rows += [{**named, **row} for row in done[key]]
    return DataFrame(rows)


def histories(networks: Iterable[Trained]) -> DataFrame:
    """The training logs of networks below each other, with variant, seed and trained_255 before their columns.

    Networks without a log are left out, and named in a warning.
    """
    parts, without = [], []
    for one in networks:
        if one.history is None:
            without.append(str(one))
            continue
        about = {"variant": one.variant, "seed": one.seed, "trained_255": one.epsilon_255}
        log = one.history()
        parts.append(DataFrame(about, index=log.index).join(log.drop(columns=list(about), errors="ignore")))
    if without:
        shown = "; ".join(without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        warnings.warn(f"no training log of {shown}", stacklevel=2)
    columns = ["variant", "seed", "trained_255", "epoch", "loss"]
    return pandas.concat(parts, ignore_index=True) if parts else DataFrame(columns=columns)


def one_seed(networks: Iterable[Trained], epsilon_255: float) -> dict[str, nn.Module]:
    """Variant -> network, of the first seed that has most variants at a training radius (or without one); opened."""
    fitting = [one for one in networks if math.isnan(one.epsilon_255) or one.epsilon_255 == epsilon_255]
    if not fitting:
        raise ValueError(f"expected networks trained at {epsilon_255:g}/255 or without a radius, got none")
    counts = Counter(one.seed for one in fitting)
    seed = max(sorted(counts), key=counts.__getitem__)
    chosen = {one.variant: one for one in fitting if one.seed == seed}
    order = [*(name for name in VARIANTS if name in chosen), *(name for name in chosen if name not in VARIANTS)]
    return {name: chosen[name].open() for name in order}


def _radii(networks: list[Trained], epsilons_255: Sequence[float]) -> list[float]:
    """All radii of the study in ascending order; raises if the networks make no study."""
    if not networks:
        raise ValueError(
            f"expected trained networks of the variants {', '.join(VARIANTS)}, got none; "
            "train them by 01_train, and give the pattern of their folders"
        )
    twice = [name for name, count in Counter(map(str, networks)).items() if count > 1]
    if twice:
        raise ValueError(f"expected one network per variant, seed and radius, got several of {'; '.join(twice)}")
    radii = {*epsilons_255, *(one.epsilon_255 for one in networks if not math.isnan(one.epsilon_255))}
    if not radii:
        raise ValueError("expected a radius to attack at: no network was trained at one; give epsilons_255")
    return sorted(float(radius) for radius in radii)


def _attacked(model: nn.Module, images: Tensor, labels: Tensor, radii: list[float], steps: int) -> list[dict]:
    """The rows of one network, without what tells networks apart."""
    right = partial(random_networks.correct, model, images, labels)
    before = right(attack=attacks.none)
    rows = []
    for epsilon in radii:
        ball = Linf(epsilon / 255)
        under = {name: right(attack=attack) for name, attack in _attacks(model, ball, steps).items()}
        accuracies = {f"{name}_accuracy": mask.double().mean().item() for name, mask in under.items()}
        if is_randomized(model):
            both = min((under["ce"], under["mean_ce"]), key=lambda mask: mask.sum().item())
        else:
            both = under["ce"] & under["margin"]
        found = withstanding.score(both, before)
        row = {"epsilon_255": epsilon, "clean_accuracy": before.double().mean().item()}
        row |= {"robust_accuracy": found["accuracy"], "success_rate": found["success_rate"]}
        rows.append(row | accuracies)
    return rows


def _attacks(model: nn.Module, ball: Linf, steps: int) -> dict[str, Attack]:
    """Name -> attack of the study on this network."""
    report = Averaged(attacks.named("pgd", ball=ball, **_REPORT))
    if is_randomized(model):
        steps = min(steps, random_networks.STEPS)
        return {
            "ce": random_networks.of_the_mean(ball, steps),
            "mean_ce": random_networks.mean_of_losses(ball, steps),
            "without_eot": random_networks.without_eot(ball, steps),
            "report": report,
        }
    long = {"ball": ball, "active_set": True, **attacks.pace(ball, steps)}
    return {"ce": attacks.named("pgd", **long), "margin": attacks.named("pgd", loss="margin", **long), "report": report}
