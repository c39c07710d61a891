"""How accurate pruned networks are, clean and under attack, as they are and in eight bits."""

from collections.abc import Mapping

from pandas import DataFrame, Series
from torch import nn

from rqlib import attacks, measures, quantization
from rqlib.core import parametrizations, runtime
from rqlib.measures import cost
from rqlib.pruning import masks
from rqlib.pruning.plans import SCRATCH, Plan

Networks = Mapping[tuple[str, float], nn.Module]
"""(method, kept) -> network."""

CALIBRATION_IMAGES = 1024


def accuracies(network: nn.Module, plan: Plan, state: str) -> dict[str, float]:
    """clean_accuracy and robust_accuracy (`measures.era`) on the plan's test images.

    ``state`` is the name of the file, without ending, from which an interrupted attack goes on.
    """
    plain, (x, y) = parametrizations.bake(network), plan.images.test
    return {
        "clean_accuracy": measures.accuracy(plain, x, y, attack=attacks.none),
        "robust_accuracy": _era(plain, plan, state),
    }


def score(networks: Networks, plan: Plan) -> DataFrame:
    """Accuracies and sizes of networks, one row per network.

    Columns: method, kept, images, model, width, pretrained_for; weights and nonzero (of convolutions and linear
    layers); dense_bits, coded_bits, index_bits, other_bits (`measures.storage`); clean_accuracy, robust_accuracy.
    """
    rows = []
    for (method, kept), network in networks.items():
        plain = parametrizations.bake(network)
        size = {name: int(value) for name, value in cost.storage(plain).items() if name.endswith("bits")}
        row = {"method": method, "kept": kept, **plan.origin, "weights": cost.weight_count(plain)}
        row |= {"nonzero": int(masks.achieved(network).nonzero.sum()), **size}
        rows.append(row | accuracies(network, plan, f"era-{method}-{kept}"))
    return DataFrame(rows)


def eight_bits(networks: Networks, scored: DataFrame, plan: Plan, *, bits: int = 8) -> DataFrame:
    """What the networks that keep about a tenth lose in an INT format, without any more training.

    Weights and signals are quantized (`quantization.ptq`); everything is computed in float32. One row per method (none
    if there are no networks), with the columns method (``lwm INT_8``), kept, images, model, width, pretrained_for,
    weights, clean_accuracy, robust_accuracy, and by how much these changed since `score`, whose rows are ``scored``:
    clean_change, robust_change.
    """
    share, rows = min((kept for _, kept in networks), key=lambda kept: abs(kept - 0.1), default=None), []
    calibration = plan.images.calibration(CALIBRATION_IMAGES)
    for method in [method for method, kept in networks if kept == share]:
        quantized = quantization.ptq(networks[method, share], f"INT_{bits}", calibration)
        with runtime.exact():
            clean = measures.accuracy(quantized, *plan.images.test)
            robust = _era(quantized, plan, f"era-{method}-{share}-int{bits}")
        before = scored[(scored.method == method) & (scored.kept == share)].iloc[0]
        row = {"method": f"{method} INT_{bits}", "kept": share, **plan.origin, "weights": before.weights}
        row |= {"clean_accuracy": clean, "robust_accuracy": robust}
        row |= {"clean_change": clean - before.clean_accuracy, "robust_change": robust - before.robust_accuracy}
        rows.append(row)
    scores = ("clean_accuracy", "robust_accuracy", "clean_change", "robust_change")
    return DataFrame(rows, columns=["method", "kept", *plan.origin, "weights", *scores])


def _era(network: nn.Module, plan: Plan, state: str) -> float:
    path = plan.state(f"{state}.pt")
    return measures.era(network, *plan.images.test, ball=plan.ball, **plan.era, checkpoint=path)


def verdict(scored: DataFrame, images: int, *, loss: float = 0.05) -> str:
    """One sentence: the smallest pruned network that loses little accuracy, both clean and under attack.

    A network trained from scratch was not pruned; half a sentence says if one of that size is as good.

    Args:
        scored: of `score`.
        images: so many were scored.
        loss: may be lost, as a fraction of all images.
    """
    dense = scored[scored.method == "dense"].iloc[0]
    pruned = scored[~scored.method.isin(["dense", SCRATCH])]
    pruned = pruned.sort_values(["kept", "robust_accuracy"], ascending=[True, False])
    near = [pruned[name] >= dense[name] - loss for name in ("clean_accuracy", "robust_accuracy")]
    enough = pruned[near[0] & near[1]]
    before = f"before pruning: {dense.clean_accuracy:.1%} and {dense.robust_accuracy:.1%}"
    if pruned.empty:
        return f"No network was pruned on its own ({before}, of {images} images)."
    if len(enough):
        best = enough.iloc[0]
        return (
            f"{best.kept:.3g} of the weights are enough: chosen by {best.method}, the network is right on "
            f"{best.clean_accuracy:.1%} of {images} images, and on {best.robust_accuracy:.1%} under attack ({before})"
            f"{_control(scored, best)}."
        )
    best = pruned.loc[pruned.robust_accuracy.idxmax()]
    return (
        f"No pruned network stays within {100 * loss:g} points of the dense one, clean and under attack; the most "
        f"robust, {best.method} with {best.kept:.3g} of the weights, is right on {best.clean_accuracy:.1%} of {images} "
        f"images, and on {best.robust_accuracy:.1%} under attack ({before}){_control(scored, best)}."
    )


def _control(scored: DataFrame, best: Series) -> str:
    """Half a sentence if the network of this size that was trained from scratch is as good; else nothing."""
    control = scored[(scored.method == SCRATCH) & (scored.kept == best.kept)]
    as_good = [control[name] >= best[name] for name in ("clean_accuracy", "robust_accuracy")]
    return "; a network of that size trained from scratch is as good" if (as_good[0] & as_good[1]).any() else ""
