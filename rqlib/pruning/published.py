"""The table of the HYDRA paper, beside our own rows."""

from pandas import DataFrame

from rqlib.core.projections import Linf
from rqlib.pruning.plans import Plan

PUBLISHED = DataFrame(
    [(0.10, 0.488, 0.495), (0.05, 0.452, 0.487), (0.01, 0.343, 0.417)], columns=["kept", "lwm", "hydra"]
).melt("kept", var_name="method", value_name="published_robust_accuracy")
"""HYDRA, table 1 (arXiv 2002.10509): VGG-16 on CIFAR-10, epsilon 8/255, PGD 50 x 10, with 500,000 extra images."""


def beside_paper(rows: DataFrame, plan: Plan) -> DataFrame:
    """The published robust accuracies beside ours, NaN where we have none, and whether the setting is the same.

    From the columns method, kept, robust_accuracy (several seeds give several rows) it makes the columns kept,
    method, published_robust_accuracy, robust_accuracy, setting (in words).
    """
    ours = rows[["method", "kept", "robust_accuracy"]]
    same = f"ours on {plan.images.title}, without the extra images"
    setting = same if is_setting_of_paper(plan) else "another setting: not comparable"
    return PUBLISHED.merge(ours, how="left", on=["method", "kept"]).assign(setting=setting)


def is_setting_of_paper(plan: Plan) -> bool:
    """Whether network, images, objectives, epochs and attacks are those of the paper's table.

    All 50,000 training images of CIFAR-10 are used, of which some may be held out for validation, and all test images.
    """
    objectives = {plan.pretrained_for, *plan.objectives.values()}
    network = (plan.model, plan.width, plan.structure) == ("VGG_16_HYDRA", 1.0, "weights")
    used, held_out = len(plan.images.train.labels), len(plan.images.validation_indices)
    images = plan.images.title == "CIFAR-10" and (used + held_out, len(plan.images.test.labels)) == (50000, 10000)
    training = objectives == {"adversarial"} and (plan.epochs["prune"], plan.epochs["finetune"]) == (20, 100)
    attacks = plan.ball == Linf(8 / 255) and plan.attack_steps == 10
    attacks = attacks and dict(plan.era) == {"steps": 50, "restarts": 10}
    return network and images and training and attacks
