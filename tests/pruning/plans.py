"""Plans that take seconds."""

from rqlib import attacks, data, pruning


def small(goal: str, epochs: dict[str, int], *, train: int, test: int, **settings) -> pruning.Plan:
    """A plan on a few digits, radius 8/255, for one objective and with one step of PGD in training."""
    images = data.load("digits").take(train=train, validation=20, test=test)
    fixed = {"ball": attacks.Linf(8 / 255), "objectives": {"prune": goal, "finetune": goal}, "attack_steps": 1}
    return pruning.Plan(images, **({"model": "SmallCNN", "epochs": epochs} | fixed | settings))
