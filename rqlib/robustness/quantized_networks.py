"""Quantized networks under attack: what may be claimed of them, and what they keep on several sets of images.

Rounding has no gradient, so a quantized network is attacked through a straight-through gradient. `quantized` doubts
that one such attack is strong enough and tries three. `on_sets` takes one attack as given and applies it to real and
generated images: does a network lose its robustness on generated images as it does on real ones?
(`prediction.relative` and `prediction.agreement` judge the answer.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data, measures
from rqlib.attacks import none
from rqlib.attacks.methods import in_words
from rqlib.core import runtime
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack
from rqlib.measures import evaluate
from rqlib.prediction.published import FLOAT
from rqlib.quantization import GRID, Format, calibration, fake_quantize, parse, post_training
from rqlib.robustness import random_networks

CLEAN = "clean"
WAYS = ("masked", "everywhere", "transfer")
"""In which a quantized network is attacked (`quantized`)."""


def quantized(
    model: nn.Module,
    formats: Sequence[Format | str],
    calibration_images: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    **options: str,
) -> DataFrame:
    """Accuracy of a network in float and in each format, attacked in three ways; the minimum is what may be claimed.

    One row for the float network, ``FP32``, and one per format, all on the same images, with the columns

    - format, clean, images (their number);
    - masked: the gradient goes straight through rounding and is zero outside the range of a signal;
    - everywhere: the gradient goes straight through rounding and range;
    - transfer: the float network is attacked, and the images are given to the quantized one;
    - minimum: the share of images that withstand all three.

    In float nothing is rounded, so the three are one attack there. Everything is computed in float32. Of a network
    that draws noise, gradients are averaged over 20 draws, and ten fresh predictions vote.

    Args:
        formats: `quantization.Format` or their names; empty: the grid of 43.
        calibration_images: plain training images, uint8 (M, C, H, W).
        images, labels: uint8 (N, C, H, W), int64 (N,).
        attack: without ``active_set``, which would stop at the float network's border and transfer poorly.
        options: granularity, ranges, nonnegative and bias, as in `quantization.ptq`.
    """
    with runtime.exact():
        x, _ = next(data.batches(images, labels, 100))
        twin = evaluate.fast_twin(runtime.active().place(model), x)
        in_format = _quantizer(model, calibration_images, **options)
        rows = [_scored(runtime.active().place(model), FLOAT, dict.fromkeys(WAYS, twin), images, labels, attack)]
        for one in formats or GRID:
            network = in_format(one)
            climbed = dict(zip(WAYS, (network, fake_quantize.unmasked(network), twin), strict=True))
            rows.append(_scored(network, str(one), climbed, images, labels, attack))
        return DataFrame(rows)


def _scored(network: nn.Module, name: str, climbed: dict, images: Tensor, labels: Tensor, attack: Attack) -> dict:
    """One row of `quantized`; ``climbed`` maps each way to the network whose loss the attack climbs."""
    attacks = {source: _climbing(source, random_networks.Averaged(attack)) for source in climbed.values()}
    each = {source: random_networks.correct(network, images, labels, attack=one) for source, one in attacks.items()}
    shares = {way: each[source].float().mean().item() for way, source in climbed.items()}
    minimum = torch.stack([*each.values()]).all(0).float().mean().item()
    clean = random_networks.correct(network, images, labels, attack=none).float().mean().item()
    return {"format": name, "clean": clean, **shares, "minimum": minimum, "images": len(labels)}


def _climbing(source: nn.Module, attack: Attack) -> Attack:
    """The attack, made to climb the loss of ``source`` instead of that of the network it is to fool."""
    return lambda model, x, y: attack(source, x, y)


def on_sets(
    model: nn.Module,
    formats: Iterable[Format | str],
    calibration_images: Tensor,
    sets: Mapping[str, data.Split],
    attacks: Mapping[str, Attack],
    *,
    granularity: str = "tensor",
    ranges: str = "mse",
    nonnegative: str = "unsigned",
    bias: str = "float",
    batch_size: int = 250,
    checkpoint: str | Path | None = None,
) -> DataFrame:
    """Accuracy of the float network and of every quantized one, on several sets of images, clean and attacked.

    One row per format, FP32 (the float network) first, with the column format and one column ``{set}_{attack}`` for
    each set and attack. Networks are quantized in float32, and gradients pass straight through the rounding. A format
    with the same values as an earlier one gets its row without computation.

    Args:
        sets: name -> images uint8 (N, C, H, W) and labels (N,).
        attacks: name -> attack; ``clean``, no attack, is added.
        checkpoint: file of the finished rows; an interrupted evaluation goes on from it.
        formats, calibration_images, granularity, ranges, nonnegative, bias: as in `quantization.sweep`.

    Raises:
        ValueError: as `quantization.ptq`; the checkpoint is of another evaluation.
    """
    attacks = {CLEAN: None, **attacks}
    identity = {
        "network": fingerprint(model.state_dict()),
        "calibration images": fingerprint(calibration_images),
        **{f"images {name}": fingerprint(*images) for name, images in sets.items()},
        **{f"attack {name}": str(in_words(attack)) for name, attack in attacks.items()},
        "options": [granularity, ranges, nonnegative, bias],
    }
    state = Resumable(checkpoint, identity, kind="evaluation on sets")
    rows = state.load().get("rows", {})
    wanted = [FLOAT, *(parse(one).name for one in formats)]
    with runtime.exact():
        options = {"granularity": granularity, "nonnegative": nonnegative, "bias": bias}
        in_format = _quantizer(model, calibration_images, ranges=ranges, **options)
        for name in runtime.freeing(runtime.progress([one for one in wanted if one not in rows], "formats")):
            twin = None if name == FLOAT or bias != "float" else parse(name).duplicate_of
            if twin in rows:
                rows[name] = rows[twin] | {"format": name}
            else:
                rows[name] = {"format": name} | _scores(in_format(name), sets, attacks, batch_size)
            state.save(rows=rows)
    return DataFrame([rows[name] for name in wanted])


def _scores(network: nn.Module, sets, attacks, batch_size: int) -> dict[str, float]:
    """The accuracies of one row of `on_sets`."""
    return {
        f"{name}_{under}": measures.accuracy(network, *images, attack=attack, batch_size=batch_size)
        for name, images in sets.items()
        for under, attack in attacks.items()
    }


def _quantizer(
    model: nn.Module, images: Tensor, *, ranges: str = "mse", **options: str
) -> Callable[[Format | str], nn.Module]:
    """Calibrate a network; returns a function from a format to the network in it by `apply` (FP32: in float)."""
    calibrated = calibration.calibrate(model, images, ranges=ranges)

    def in_format(format: Format | str) -> nn.Module:
        if format == FLOAT:
            return calibrated.network
        return post_training.apply(calibrated, format, **options)

    return in_format
