"""Does a quantized network lose its robustness on generated images as it does on real ones?

For every format the accuracy on several sets of images, clean and attacked; each divided by the float network's on
the same set and under the same attack (relative accuracy). The claim to be judged is y = x: what the network keeps
on generated images is what it keeps on real ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy
import pandas
import scipy.stats
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
from rqlib.prediction import features, fits
from rqlib.quantization import Format, calibration, fake_quantize, parse, post_training

FLOAT = "FP32"
CLEAN = "clean"


def study(
    model: nn.Module,
    formats: Iterable[Format | str],
    calibration_images: Tensor,
    sets: Mapping[str, data.Split],
    attacks: Mapping[str, Attack],
    *,
    granularity: str = "tensor",
    ranges: str = "minmax",
    bias: str = "float",
    batch_size: int = 250,
    checkpoint: str | Path | None = None,
) -> DataFrame:
    """Accuracy of the float and of every quantized network: a row a format (FP32 first), columns ``{set}_{attack}``.

    The quantized network is the fake-quantized one in float32, whose gradients pass straight through its rounding,
    so an attack meets no flat steps. Formats of equal values are computed once.

    Args:
        sets: name -> images uint8 and labels.
        attacks: name -> attack; ``clean`` is always there.
        checkpoint: file of the finished rows; an interrupted study goes on from it.
        Others as in `quantization.sweep`.

    Raises:
        ValueError: as `quantization.ptq`; a checkpoint of another study.
    """
    attacks = {CLEAN: None, **attacks}
    identity = {
        "network": fingerprint(model.state_dict()),
        "calibration images": fingerprint(calibration_images),
        **{f"images {name}": fingerprint(*images) for name, images in sets.items()},
        **{f"attack {name}": str(in_words(attack)) for name, attack in attacks.items()},
        "options": [granularity, ranges, bias],
    }
    kept = Resumable(checkpoint, identity, kind="study")
    rows = kept.load().get("rows", {})
    wanted = [FLOAT, *(parse(one).name for one in formats)]
    with runtime.exact():
        calibrated = calibration.calibrate(model, calibration_images, ranges=ranges)
        for name in runtime.freeing(runtime.progress([one for one in wanted if one not in rows], "formats")):
            twin = None if name == FLOAT or bias != "float" else parse(name).duplicate_of
            if twin in rows:
                rows[name] = rows[twin] | {"format": name}
            else:
                network = calibrated.network
                if name != FLOAT:
                    network = post_training.apply(calibrated, name, granularity=granularity, bias=bias)
                rows[name] = {"format": name, **_scores(network, sets, attacks, batch_size)}
            kept.save(rows=rows)
    return DataFrame([rows[name] for name in wanted])


def _scores(network: nn.Module, sets, attacks, batch_size: int) -> dict[str, float]:
    return {
        f"{name}_{under}": measures.accuracy(network, *images, attack=attack, batch_size=batch_size)
        for name, images in sets.items()
        for under, attack in attacks.items()
    }


def published(rows: DataFrame, *, real: str = "test") -> DataFrame:
    """The rows of a study in the published form: a row a generator and format, columns test_clean, pseudo_clean, ...

    Args:
        real: the set of real images; every other set becomes a generator.
    """
    others = [name.removesuffix(f"_{CLEAN}") for name in rows if name.endswith(f"_{CLEAN}")]
    attacks = [name.removeprefix(f"{real}_") for name in rows if name.startswith(f"{real}_")]
    attacks = [name for name in attacks if all(f"{other}_{name}" in rows for other in others)]
    kept = [name for name in rows if not name.startswith(tuple(f"{other}_" for other in others))]

    def of(generator: str) -> DataFrame:
        sides = {real: "test", generator: "pseudo"}
        names = {f"{old}_{attack}": f"{new}_{attack}" for attack in attacks for old, new in sides.items()}
        return rows[[*kept, *names]].rename(columns=names).assign(generator=generator)

    return pandas.concat([of(name) for name in others if name != real], ignore_index=True)


def relative(rows: DataFrame) -> DataFrame:
    """Relative accuracies, a row a network, generator, attack and format: columns test, pseudo.

    Args:
        rows: in the published form: format, generator, test_clean, pseudo_clean, test_fgsm, ...; ``run``, or among
            the columns of `features.NETWORK` those that tell networks apart; every network has a row FP32.

    Formats that were not attacked are left out. Networks whose float accuracy under an attack is 0 have no relative
    accuracy there: left out, and said.

    Raises:
        ValueError: columns are missing; a network has no row FP32.
    """
    if missing := {"format", "generator", "test_clean", "pseudo_clean"} - set(rows):
        raise ValueError(f"expected rows with columns {', '.join(sorted(missing))} (quantized_networks.published)")
    keys = [name for name in ("run", *features.NETWORK, "generator") if name in rows]
    under = [name.removeprefix("pseudo_") for name in rows if name.startswith("pseudo_") and f"test{name[6:]}" in rows]
    columns = [f"{side}_{attack}" for attack in under for side in ("test", "pseudo")]
    whole = rows[rows.format == FLOAT].set_index(keys)[columns]
    joined = rows[rows.format != FLOAT].merge(whole, how="left", on=keys, suffixes=("", "_float"), validate="m:1")
    if joined[[f"{name}_float" for name in columns]].isna().any(axis=None):
        raise ValueError(f"expected a row {FLOAT} of every network and generator, found some without")
    parts = [
        joined[[*keys, "format"]].assign(attack=attack, **{
            side: joined[f"{side}_{attack}"] / joined[f"{side}_{attack}_float"].replace(0, numpy.nan)
            for side in ("test", "pseudo")
        })
        for attack in under
    ]  # fmt: skip
    measured = [joined[[f"{side}_{attack}" for side in ("test", "pseudo")]].notna().all(axis=1) for attack in under]
    frame = pandas.concat([part[rows] for part, rows in zip(parts, measured, strict=True)], ignore_index=True)
    known = frame.dropna(subset=["test", "pseudo"])
    if len(known) < len(frame):
        print(f"{len(frame) - len(known)} of {len(frame)} rows left out: the float network's accuracy there is 0")
    return known.reset_index(drop=True)


def agreement(frame: DataFrame, by: Sequence[str] = ("generator", "attack")) -> DataFrame:
    """How well relative accuracy on generated images tells that on real ones, a row a group.

    identity_r2 judges the claim test = pseudo: ``1 - sum (y - x)^2 / sum (y - mean y)^2``, negative where the mean
    says more; linear_r2 the best line, spearman the order, mae the mean absolute error of the claim.

    Args:
        frame: from `relative`.
    """
    groups = frame.groupby([*by], sort=False)[["test", "pseudo"]]
    scores = groups.apply(lambda some: pandas.Series(_agreement(some)))
    return groups.size().rename("rows").to_frame().join(scores).reset_index()


def _agreement(some: DataFrame) -> dict[str, float]:
    identity = fits.scores(some.test, some.pseudo)
    varies = some.test.nunique() > 1 and some.pseudo.nunique() > 1
    line = scipy.stats.pearsonr(some.pseudo, some.test).statistic ** 2 if varies else numpy.nan
    order = scipy.stats.spearmanr(some.pseudo, some.test).statistic if varies else numpy.nan
    return {"identity_r2": identity["r2"], "linear_r2": line, "spearman": order, "mae": identity["mae"]}


def quantized(
    model: nn.Module,
    formats: Sequence,
    calibration_images: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
) -> pandas.DataFrame:
    """Robust accuracy of a network in each format, attacked in three ways; the minimum is what may be claimed.

    Rounding cuts gradients, so one attack proves little: ``masked`` goes straight through rounding and
    stops outside the range, ``everywhere`` stops nowhere, ``transfer`` climbs the float network.
    ``minimum`` counts the images that withstand all three; judged in float32.

    Args:
        formats: `quantization.Format` or names.
        attack: for an honest transfer without ``active_set``, which stops at the float network's border.
    """
    with runtime.exact():
        twin, rows = evaluate.fast_twin(runtime.active().place(model)), []
        calibrated = calibration.calibrate(model, calibration_images)
        for format in formats:
            network = post_training.apply(calibrated, format)
            climbed = {"masked": network, "everywhere": fake_quantize.unmasked(network), "transfer": twin}
            right = {
                way: evaluate.correct(network, images, labels, attack=_on(source, attack))
                for way, source in climbed.items()
            }
            row = {"clean": measures.accuracy(network, images, labels, attack=none)}
            row |= {way: kept.float().mean().item() for way, kept in right.items()}
            row["minimum"] = torch.stack([*right.values()]).all(0).float().mean().item()
            rows.append({"format": str(format)} | row)
    return pandas.DataFrame(rows)


def _on(source: nn.Module, attack: Attack) -> Attack:
    """The attack, climbing another network than the one it is asked to fool."""
    return lambda model, x, y: attack(source, x, y)
