"""What the figures of one network say, in words: three paragraphs made by rules.

A difference of two accuracies counts only if its 95% interval excludes 0 (`differ`). A treatment costs nothing only if
it is not measurably worse, and at most `SMALL` below (`keeps`). The float network is compared on the same images where
that is known. What was not measured is said to be so.
"""

from math import copysign, hypot, isnan, nan

from pandas import DataFrame

from rqlib.workbook.overview.kinds import CHANNELS, DEFENDED, FLOAT, FORMAT, JOINT, KINDS, MIX, PRUNED, UNSEEN
from rqlib.workbook.overview.treatments import Section

HALF = 0.5
"""A network withstands an attack if more than this share of all images does, by the lower end of the interval."""
SMALL = 0.02
"""A loss of up to two points that may be chance is called none; a larger one that may be chance is left undecided."""
UNDECIDED = "can it be told that it costs nothing: there are too few images or seeds"
MOST_NAMED = 3
"""Up to so many treatments that withstand it are named; of more than that there is a number."""


def say(section: Section) -> dict[str, str]:
    """Question -> answer: ``If I quantize it``, ``If I make it smaller``, ``If it is attacked``."""
    return {
        "If I quantize it": " ".join([*_quantized(section), _predicted(section.rows)]),
        "If I make it smaller": " ".join([*_smaller(section), *_without_channels(section)]),
        "If it is attacked": " ".join([*_attacked(section), *_defended(section), _proved(section)]),
    }


def percent(share: float) -> str:
    """``98.9%``."""
    return f"{100 * share:.1f}%"


def differ(one: dict, other: dict, metric: str) -> int | None:
    """1 if the first is measurably higher, -1 if it is lower, 0 if that cannot be told, None if one is not known.

    They differ measurably if the 95% interval of their difference excludes 0. It follows from the two intervals:
    the squares of the distances from each share to its end toward the other one are added (Newcombe 1998, Statistics in
    Medicine 17, method 10).
    """
    share, low, high = ([row.get(f"{metric}{end}", nan) for row in (one, other)] for end in ("", "_low", "_high"))
    difference = share[0] - share[1]
    larger, smaller = (0, 1) if difference > 0 else (1, 0)
    reach = hypot(share[larger] - low[larger], high[smaller] - share[smaller])
    if isnan(difference + reach):
        return None
    return 0 if abs(difference) <= reach else int(copysign(1, difference))


def keeps(row: dict, whole: dict, metric: str) -> bool | None:
    """Whether a treatment costs nothing: False for a measurable loss, None if that cannot be told."""
    whole = on_the_same(row, whole)
    verdict = differ(row, whole, metric)
    if verdict == 0 and whole[metric] - row[metric] > SMALL:
        return None
    return None if verdict is None else verdict >= 0


def on_the_same(row: dict, whole: dict) -> dict:
    """The float network's row, with the accuracies that it has on the images that this row was scored on, if known."""
    known = [metric for metric in ("clean", "robust") if not isnan(row.get(f"float_{metric}", nan))]
    names = [f"{metric}{end}" for metric in known for end in ("", "_low", "_high")]
    return whole | {name: row.get(f"float_{name}", nan) for name in names}


def _rows(section: Section, *kinds: str, metric: str = "clean") -> list[dict]:
    """The rows of these kinds that have the metric."""
    rows = section.rows
    return rows[rows.kind.isin(kinds) & rows[metric].notna()].to_dict("records") if metric in rows else []


def _name(row: dict) -> str:
    return "the float network" if row["kind"] == FLOAT else row["treatment"]


def _smallest(rows: list[dict]) -> list[dict]:
    """The rows with a known size, the smallest first."""
    return sorted((row for row in rows if row.get("bits", nan) > 0), key=lambda row: row["bits"])


def _times(whole: dict, row: dict) -> str:
    """``, 4.0 times smaller``; empty if a size is not known."""
    ratio = whole.get("bits", nan) / row.get("bits", nan)
    return "" if isnan(ratio) else f", {ratio:.1f} times smaller"


def _beside(row: dict, whole: dict, metric: str = "clean") -> str:
    """``98.0% beside 98.5%``, both on the same images where that is known."""
    whole = on_the_same(row, whole)
    return f"{percent(row[metric])} beside {percent(whole[metric])}"


# The first paragraph.


def _quantized(section: Section) -> list[str]:
    whole, rows = section.float_row, _rows(section, FORMAT, MIX) or _rows(section, UNSEEN)
    if not rows or isnan(whole.get("clean", nan)):
        return ["No number format was measured (notebook 02_quantize)."]
    verdicts = [(row, keeps(row, whole, "clean")) for row in rows]
    said = [_int8(row, whole) for row in rows if row["treatment"] == "INT_8"]
    harmless = [row for row, kept in verdicts if kept]
    for best in [row for row in _smallest(harmless)[:1] if row["treatment"] != "INT_8"]:
        size = _times(whole, best)
        said.append(
            f"The smallest that costs nothing measurable is {best['treatment']} ({_beside(best, whole)}{size})."
        )
    if not harmless:
        all_lose = all(kept is False for _, kept in verdicts)
        said.append("Every format costs accuracy." if all_lose else f"Of no format {UNDECIDED}.")
    worse = [row for row, kept in verdicts if kept is False]
    if worse and harmless:
        worst = max(worse, key=lambda row: row["clean"])
        points = 100 * (on_the_same(worst, whole)["clean"] - worst["clean"])
        counted = f"formats that lose accuracy: {len(worse)} of {len(rows)}"
        said.append(f"The least measurable loss is {points:.1f} points, of {worst['treatment']} ({counted}).")
    return said


def _int8(row: dict, whole: dict) -> str:
    images = f" on {row['clean_images']:.0f} images" if row.get("clean_images", nan) > 0 else ""
    verdict = "undecided" if keeps(row, whole, "clean") is None else differ(row, on_the_same(row, whole), "clean")
    words = {
        0: "changes nothing measurable",
        -1: "costs accuracy",
        1: "gains accuracy",
        "undecided": "may cost accuracy",
    }
    return f"INT_8 {words[verdict]}: {_beside(row, whole)}{images}{_times(whole, row)}."


def _predicted(rows: DataFrame) -> str:
    known = rows.dropna(subset=["predicted", "clean"]) if {"predicted", "clean"} <= set(rows) else rows[:0]
    if known.empty:
        return "No accuracy was predicted beforehand (notebooks 03_fit and 04_generator)."
    error = (known.predicted - known.clean).abs().mean()
    said = f"Predictions made beforehand were off by {100 * error:.1f} points on average of {len(known)}"
    bounded = known.dropna(subset=["predicted_low", "predicted_high"]) if "predicted_low" in known else known[:0]
    if bounded.empty:
        return f"{said}, and have no intervals."
    inside = bounded.clean.between(bounded.predicted_low - 1e-9, bounded.predicted_high + 1e-9)
    return f"{said}; {inside.sum()} of {len(bounded)} intervals held."


# The second.


def _smaller(section: Section) -> list[str]:
    whole, rows = section.float_row, _rows(section, PRUNED, JOINT)
    if not rows or isnan(whole.get("clean", nan)):
        return ["Nothing was pruned (notebook 06_prune)."]
    verdicts = [(row, _keeps_both(row, whole)) for row in rows]
    harmless = [row for row, kept in verdicts if kept]
    if harmless:
        best = (_smallest(harmless) or harmless)[0]
        said = f"The smallest that loses nothing measurable is {best['treatment']}: {_both(best, whole)}"
        return [
            f"{said}{_times(whole, best)}.",
            f"Networks that lose nothing measurable: {len(harmless)} of {len(rows)}.",
        ]
    best = max(rows, key=lambda row: row["clean"])
    nearest = f"the most accurate is {best['treatment']}: {_both(best, whole)}"
    if any(kept is None for _, kept in verdicts):
        return [f"Of no smaller network {UNDECIDED}; {nearest}."]
    lost = "accuracy" if all(keeps(row, whole, "clean") is False for row in rows) else "accuracy or robustness"
    return [f"Every smaller network loses {lost}; {nearest}."]


def _keeps_both(row: dict, whole: dict) -> bool | None:
    """As `keeps`, of accuracy and, where the network was attacked, of accuracy under attack."""
    metrics = ["clean"] if isnan(row.get("robust", nan)) else ["clean", "robust"]
    each = [keeps(row, whole, metric) for metric in metrics]
    return False if False in each else all(each) or None


def _both(row: dict, whole: dict) -> str:
    """``98.0% beside 98.5%, under attack 60.0% beside 61.0%``; clean alone where one of the two was not attacked."""
    attacked = not isnan(row.get("robust", nan) + on_the_same(row, whole).get("robust", nan))
    return _beside(row, whole) + (f", under attack {_beside(row, whole, 'robust')}" if attacked else "")


def _without_channels(section: Section) -> list[str]:
    whole, rows = section.float_row, _rows(section, CHANNELS)
    if not rows or isnan(whole.get("clean", nan)):
        return ["No channels were removed."]
    row, whole = rows[0], on_the_same(rows[0], whole)
    verdict = keeps(row, whole, "clean")
    fewer = whole.get("macs", nan) / row.get("macs", nan)
    operations = "" if isnan(fewer) else f", with {fewer:.1f} times fewer operations"
    words = {True: "can go", False: "cannot go without a loss", None: "are gone; whether that costs accuracy is open"}
    return [f"Half of the channels {words[verdict]}: {_beside(row, whole)}{operations}."]


# The third.


def _attacked(section: Section) -> list[str]:
    rows = _rows(section, *KINDS, metric="robust")
    if not rows:
        return ["Nothing was attacked (notebook 05_robust)."]
    whole, ball, said = section.float_row, section.balls[0], []
    if not isnan(whole.get("robust", nan)):
        kept = percent(whole["robust"])
        said = [f"Under attack within {ball} the float network is right on {kept} of the images."]
    known = [row for row in rows if not isnan(row.get("robust_low", nan))]
    if not known:
        return [*said, "Whether anything withstands it cannot be told: too few intervals are known."]
    strong = sorted((row for row in known if row["robust_low"] > HALF), key=lambda row: -row["robust"])
    best = max(known, key=lambda row: row["robust"])
    name = _listed([best])
    if not strong:
        return [*said, f"Nothing here withstands it for more than half of the images; nearest comes {name}."]
    if len(strong) <= MOST_NAMED and len(strong) < len(known):
        return [*said, f"Nothing here withstands it for more than half of the images, except {_listed(strong)}."]
    return [
        *said,
        f"Treatments that withstand it for more than half of the images: {len(strong)} of {len(known)}, best {name}.",
    ]


def _listed(rows: list[dict]) -> str:
    """``A (81.0%), B (79.0%) and C (60.2%)``."""
    names = [f"{_name(row)} ({percent(row['robust'])})" for row in rows]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _defended(section: Section) -> list[str]:
    whole, rows = section.float_row, _rows(section, DEFENDED, metric="robust")
    rows = [row for row in rows if not isnan(row.get("clean", nan))]
    if not rows or not section.network.is_natural or isnan(whole.get("robust", nan) + whole.get("clean", nan)):
        return []
    best = max(rows, key=lambda row: row["robust"])
    verdict = differ(best, whole, "robust")
    words = {1: "raises", 0: "does not measurably change", -1: "lowers", None: "changes"}[verdict]
    costs = {1: "and gains clean accuracy", 0: "and costs no clean accuracy that can be measured",
             -1: "and costs clean accuracy", None: "with clean accuracy"}[differ(best, whole, "clean")]  # fmt: skip
    return [f"The best defense, {best['treatment']}, {words} this ({_beside(best, whole, 'robust')}) {costs} "
            f"({_beside(best, whole)})."]  # fmt: skip


def _proved(section: Section) -> str:
    rows = _rows(section, *KINDS, metric="certified")
    if not rows:
        return "Nothing was proved (the parameter certified_images of 05_robust and 06_prune)."
    best = max(rows, key=lambda row: row["certified"])
    if best["certified"] == 0:
        return f"Nothing was proved within {section.proved}."
    proved = f"Proved within {section.proved}: at best {percent(best['certified'])}, for {_name(best)}"
    return f"{proved}; nothing within {section.unproved}." if section.unproved else f"{proved}."
