"""Certified accuracy in an L-infinity ball, at the least cost: each image goes on only until it is decided.

Images that are classified wrongly are out, then those that PGD fools. What is left is certified by IBP, else by
CROWN-IBP, else by CROWN, which costs most. An image that is certified was therefore never fooled.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import attacks, data
from rqlib.attacks.methods import in_words
from rqlib.certification import bounds, boxes, linear_bounds, programs
from rqlib.certification.boxes import Box
from rqlib.certification.programs import Step
from rqlib.core import runtime
from rqlib.core.entry import classifier
from rqlib.core.projections import Linf
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack, did_you_mean

WRONG, ATTACKED, CERTIFIED, UNDECIDED = OUTCOMES = "wrong", "attacked", "certified", "undecided"
IBP, CROWN_IBP, CROWN = BOUNDS = "IBP", "CROWN-IBP", "CROWN"
"""From cheap and loose to costly and close."""

LADDER = ("clean", "PGD", CROWN, CROWN_IBP, IBP)
"""Columns of `ladder`, from the largest accuracy to the smallest."""


def cascade(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    attack: Attack | None = None,
    asked: Sequence[str] = BOUNDS,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
) -> DataFrame:
    """Whether each image is certified in the L-infinity ball of radius ``epsilon``, and what decided it.

    Args:
        model: any network for which bounds are known (`ibp`).
        images, labels: uint8 (N, C, H, W), or pixels in [0, 1]; int64 (N,).
        epsilon: radius in pixels.
        attack: whose images decide for ``attacked``; PGD of 50 steps in the ball if None.
        asked: names of the bounds that are tried, of `BOUNDS`. CROWN takes a second per image or less on small
            networks, and minutes on deep ones.
        batch_size: images that are worked on, and kept, together. Memory grows with it.
        checkpoint: file in which the rows are kept, and from which an interrupted computation goes on.

    Returns:
        One row per image: epsilon_255, label, outcome (wrong, attacked, certified or undecided), decided_by (clean,
        PGD, IBP, CROWN-IBP, CROWN; None if undecided), seconds. The fraction of ``certified`` is the certified
        accuracy; that of ``certified`` and ``undecided`` together is the accuracy under attack.

    Raises:
        ValueError: as `ibp`; an unknown bound; numbers of images and labels differ; the checkpoint belongs to another
            computation.
    """
    for name in asked:
        if name not in BOUNDS:
            raise ValueError(did_you_mean("bound", name, dict.fromkeys(BOUNDS)))
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"expected one label per image, got {len(images)} images and {len(labels)} labels")
    boxes.check_radius(epsilon)
    with runtime.exact() as policy:
        model = policy.place(classifier(model))
        attack = attack or _pgd(epsilon)
        identity = {} if checkpoint is None else _identity(model, images, labels, epsilon, attack, asked)
        kept = Resumable(checkpoint, identity, kind="cascade")
        rows = kept.load().get("rows", [])
        x = policy.place(data.to_pixels(images[:1]))
        steps = programs.program(model, tuple(x.shape[1:]))
        bounds.check_classes(steps)
        names = _usable(steps, asked)
        for start in runtime.progress(range(len(rows), len(labels), batch_size), "certifying"):
            part = slice(start, start + batch_size)
            x, y = policy.place(data.to_pixels(images[part])), policy.place(labels[part])
            with torch.autocast(x.device.type, enabled=False):
                found = _decided(model, steps, names, attack, x, y, epsilon)
            rows += [{"epsilon_255": 255 * epsilon, **row} for row in found]
            kept.save(rows=rows)
    return DataFrame(rows)


def ladder(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    *,
    attack: Callable[[float], Attack] | None = None,
    asked: Sequence[str] = BOUNDS,
    folder: str | Path | None = None,
) -> DataFrame:
    """For each radius: the clean accuracy, that under PGD, and what CROWN, CROWN-IBP and IBP certify, each at most it.

    CROWN stands for the best of the bounds that are asked for, and CROWN-IBP for the better of two.

    Args:
        model, images, labels, asked: as `cascade`.
        radii: L-infinity, in pixels.
        attack: from a radius to the attack; PGD of 50 steps if None.
        folder: where the states of `cascade` are kept, one file per radius.

    Returns:
        One row per radius: epsilon_255, clean, PGD, CROWN, CROWN-IBP, IBP (fractions of all images; of the bounds
        those that are asked for), images, seconds.
    """
    if not len(radii) or not len(asked):
        raise ValueError(
            f"expected at least one radius and one of the bounds {', '.join(BOUNDS)}, got {radii}, {asked}"
        )
    rows = []
    for epsilon in radii:
        checkpoint = None if folder is None else Path(folder) / f"cascade_{255 * epsilon:.6g}.pt"
        found = cascade(
            *(model, images, labels),
            epsilon=epsilon,
            attack=None if attack is None else attack(epsilon),
            asked=asked,
            checkpoint=checkpoint,
        )
        reached = {name: share for name, share in rungs(found).items() if name not in BOUNDS or name in asked}
        rows.append({"epsilon_255": 255 * epsilon, **reached, "images": len(found), "seconds": found.seconds.sum()})
    return DataFrame(rows)


def ladder_if_known(*arguments, **options) -> DataFrame:
    """As `ladder`; where no bounds are known for the network, a warning says why, and the table has no rows."""
    try:
        return ladder(*arguments, **options)
    except programs.NoBounds as error:
        warnings.warn(f"not certified: {error}", stacklevel=2)
        return DataFrame(columns=["epsilon_255", *LADDER, "images", "seconds"])


def rungs(table: DataFrame) -> dict[str, float]:
    """The accuracies of `LADDER`, as fractions of the images of a table of `cascade`."""
    by = table.decided_by
    return {
        "clean": float((table.outcome != WRONG).mean()),
        "PGD": float(table.outcome.isin([CERTIFIED, UNDECIDED]).mean()),
        CROWN: float(by.isin(BOUNDS).mean()),
        CROWN_IBP: float(by.isin([IBP, CROWN_IBP]).mean()),
        IBP: float((by == IBP).mean()),
    }


def _pgd(epsilon: float) -> Attack:
    ball = Linf(epsilon)
    return attacks.named("pgd", ball=ball, **attacks.pace(ball, 50), active_set=True)


def _identity(model: nn.Module, images, labels, epsilon: float, attack: Attack, asked) -> dict:
    """What the result depends on."""
    return {
        "network": fingerprint(model.state_dict()),
        "images": fingerprint(images, labels),
        "epsilon": epsilon,
        "attack": in_words(attack),
        "asked": list(asked),
    }


def _decided(model, steps: list[Step], names, attack: Attack, x: Tensor, y: Tensor, epsilon: float) -> list[dict]:
    """The rows of one batch, each image with its share of the seconds of every stage that it went through."""
    rows = [{"label": int(label), "outcome": UNDECIDED, "decided_by": None, "seconds": 0.0} for label in y]
    margins = x.new_full((len(x), steps[-1].shape[0]), -torch.inf)
    stages = [
        ("clean", WRONG, lambda going: _is_wrong(model, x[going], y[going])),
        ("PGD", ATTACKED, lambda going: _is_wrong(model, attack(model, x[going], y[going]), y[going])),
    ]
    stages += [(name, CERTIFIED, partial(_is_certified, model, steps, name, x, y, epsilon, margins)) for name in names]
    going = torch.arange(len(x), device=x.device)
    for name, outcome, decide in stages:
        if not len(going):
            break
        began = time.perf_counter()
        decided = decide(going)
        share = (time.perf_counter() - began) / len(going)
        for image, done in zip(going.tolist(), decided.tolist(), strict=True):
            rows[image]["seconds"] += share
            if done:
                rows[image] |= {"outcome": outcome, "decided_by": name}
        going = going[~decided]
    return rows


@torch.no_grad()
def _is_wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with runtime.evaluating(model):
        return model(x).argmax(1) != y


@torch.no_grad()
def _is_certified(model, steps, name: str, x, y, epsilon: float, margins: Tensor, going: Tensor) -> Tensor:
    """Whether images are certified by a bound, together with those before it; their margins are improved in place."""
    x, y, known = x[going], y[going], margins[going]
    box = boxes.of_images(x, epsilon)
    slack = bounds.slack(model, x)[:, None]
    margins[going] = torch.maximum(known, _BOUNDS[name](steps, box, y, known <= slack))
    return bounds.certified(model, x, margins[going])


def _ibp(steps: list[Step], box: Box, y: Tensor, wanted: Tensor) -> Tensor:
    return boxes.margins(steps, boxes.propagate(steps, box), y)


def _crown_ibp(steps: list[Step], box: Box, y: Tensor, wanted: Tensor) -> Tensor:
    return linear_bounds.margins(steps, boxes.propagate(steps, box), y, wanted=wanted)


def _crown(steps: list[Step], box: Box, y: Tensor, wanted: Tensor) -> Tensor:
    found = linear_bounds.tightened(steps, box)
    return torch.maximum(boxes.margins(steps, found, y), linear_bounds.margins(steps, found, y, wanted=wanted))


_BOUNDS = {IBP: _ibp, CROWN_IBP: _crown_ibp, CROWN: _crown}


def _usable(steps: list[Step], asked: Sequence[str]) -> list[str]:
    """Names of the bounds that are asked for and known for all steps, the cheapest first; warns if some are not."""
    without = [step.name for step in steps if step.kind == programs.MONOTONE]
    if not without:
        return [name for name in BOUNDS if name in asked]
    left = [IBP] if IBP in asked else []
    how = "images are certified by boxes (IBP) alone" if left else "no image is certified; boxes (IBP) would work"
    warnings.warn(f"no linear bounds are known for {', '.join(without)}: {how}", stacklevel=3)
    return left
