"""Accuracies, clean and under attack, streamed over batches: memory does not grow with the number of images.

Clean logits are computed under the active precision policy. An attack runs under it too, on a faster
twin of the network, but what it found is judged in float32 by the network itself.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from rqlib import data
from rqlib.attacks import losses, methods
from rqlib.core import layers, runtime
from rqlib.core.projections import Ball
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack


def logits(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack | None = None, batch_size: int = 500
) -> Tensor:
    """Logits (N, K) float32 on the CPU, of the images or of the attack's version of them.

    The model runs in eval mode; its modes are restored.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), what an attack moves the images away from.

    Raises:
        ValueError: there are no images, or not one label an image.
    """
    parts = [logits.cpu() for logits, _ in _judged(model, images, labels, attack, batch_size)]
    if not parts:
        raise ValueError("expected at least one image to evaluate, got none")
    return torch.cat(parts)


def correct(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | None = None,
    batch_size: int = 500,
    checkpoint: str | Path | None = None,
) -> Tensor:
    """Whether each image is classified as labeled: bool (N,) on the CPU. Arguments and errors as `logits`.

    Args:
        checkpoint: file in which the result is kept after every batch. If it exists, evaluation goes on from it.

    Raises:
        ValueError: also where the checkpoint is of another network, other images or another attack.
    """
    if not len(labels):
        raise ValueError("expected at least one image to evaluate, got none")
    identity = {} if checkpoint is None else _identity(model, images, labels, attack)
    kept = Resumable(checkpoint, identity, kind="evaluation")
    done = kept.load().get("correct", torch.empty(0, dtype=torch.bool))
    rest = getattr(images, "subset", images.__getitem__)(slice(len(done), None))
    for logits, y in _judged(model, rest, labels[len(done) :], attack, batch_size):
        done = torch.cat([done, (logits.argmax(1) == y).cpu()])
        kept.save(correct=done)
    return done


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, **options) -> float:
    """Fraction of images classified as labeled, clean or under an attack. Options and errors as `correct`."""
    return correct(model, images, labels, **options).float().mean().item()


def robustness(model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack, batch_size: int = 500) -> dict:
    """One row: clean_accuracy, robust_accuracy and success_rate, all judged in float32.

    Robust accuracy = right after the attack / all images; success rate = fooled / right before the attack.
    """
    before = correct(model, images, labels, attack=methods.none, batch_size=batch_size)
    after = correct(model, images, labels, attack=attack, batch_size=batch_size)
    return {
        "clean_accuracy": before.float().mean().item(),
        "robust_accuracy": after.float().mean().item(),
        "success_rate": _success_rate(before, after),
    }


def robust_accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack, **options) -> float:
    """Fraction of all images that are right after the attack. Options as `correct`."""
    return accuracy(model, images, labels, attack=attack, **options)


def success_rate(model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack, batch_size: int = 500) -> float:
    """Fraction fooled of the images that were right before the attack; NaN where none was."""
    return robustness(model, images, labels, attack=attack, batch_size=batch_size)["success_rate"]


def era(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    ball: Ball,
    steps: int = 50,
    restarts: int = 10,
    step_size: float | None = None,
    **options,
) -> float:
    """Empirical robust accuracy: right after every restart of PGD; the strong setting is 100 restarts x 1,000 steps.

    ``step_size`` is that of `methods.pace` by default. Options as `correct`.
    """
    settings = methods.pace(ball, steps) | ({} if step_size is None else {"step_size": step_size})
    attack = partial(methods.pgd, ball=ball, **settings, restarts=restarts, active_set=True)
    return accuracy(model, images, labels, attack=attack, **options)


def transfer_matrix(
    models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, *, attack: Attack, batch_size: int = 500
) -> pandas.DataFrame:
    """Accuracy of each network (column) on images attacked on each network (row), judged in float32.

    The diagonal is white-box. An attack with ``active_set`` stops at the source's border and transfers poorly.
    """
    rows = {source: _transferred(models, source, images, labels, attack, batch_size) for source in models}
    frame = pandas.DataFrame.from_dict(rows, orient="index", columns=list(models))
    return frame.rename_axis(index="source", columns="target")


def fast_twin(model: nn.Module) -> nn.Module:
    """A copy in eval mode that computes the same function in less time: BatchNorm folded, weights frozen.

    Where folding is not possible (the graph cannot be traced) or would not be exact (weights or
    inputs pass a transform), it is the model itself.
    """
    parts = list(model.modules())
    if any(is_parametrized(part) or part._forward_hooks or part._forward_pre_hooks for part in parts):
        return model
    try:
        return runtime.active().place(layers.fold_batchnorm(model)).requires_grad_(False)
    except ValueError:
        return model


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K): row = label, column = prediction."""
    flat = labels.cpu() * num_classes + predictions.cpu()
    return torch.bincount(flat, minlength=num_classes**2).view(num_classes, num_classes)


def _judged(model, images, labels, attack: Attack | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits float32 (B, K), y (B,)) of every batch, clean or attacked."""
    policy = runtime.active()
    batches = data.batches(images, labels, batch_size)
    with runtime.evaluating(policy.place(model)):
        if attack is None:
            for x, y in batches:
                with torch.no_grad(), policy.autocast():
                    yield model(x).float(), y
            return
        twin = fast_twin(model)
        for x, y in runtime.progress(batches, "attack", -(-len(labels) // batch_size)):
            yield _attacked_logits(model, twin, attack, x, y), y


def _attacked_logits(model: nn.Module, twin: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """Logits of the model on attacked images, all in float32.

    Where bfloat16 claims a success that float32 denies, the image is attacked again in float32.
    """
    policy = runtime.active()
    with policy.autocast():
        adversarial = attack(twin, x, y)
    logits = _exact_logits(model, adversarial)
    if not policy.bfloat16:
        return logits
    doubtful = _barely_right(logits, y)
    if len(doubtful):
        with torch.no_grad(), policy.autocast():
            doubtful = doubtful[twin(adversarial[doubtful]).argmax(1) != y[doubtful]]
    if len(doubtful):
        logits[doubtful] = _exact_logits(model, attack(twin, x[doubtful], y[doubtful]))
    return logits


def _barely_right(logits: Tensor, y: Tensor) -> Tensor:
    """Indices of images that are right by a margin that bfloat16 could miss: a quarter of the largest logit."""
    margin = -losses.margin(logits, y)
    return ((margin >= 0) & (margin < 0.25 * logits.abs().amax(1))).nonzero().squeeze(1)


def _exact_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in float32, whatever is active around."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), runtime.tf32(False):
        return model(x).float()


def _transferred(models, source: str, images, labels, attack: Attack, batch_size: int) -> list[float]:
    """Accuracy of every network on images attacked on ``source``."""
    policy, hits = runtime.active(), dict.fromkeys(models, 0)
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(runtime.evaluating(policy.place(model)))
        twin = fast_twin(models[source])
        batches = data.batches(images, labels, batch_size)
        for x, y in runtime.progress(batches, f"attack {source}", -(-len(labels) // batch_size)):
            with policy.autocast():
                adversarial = attack(twin, x, y)
            for target, model in models.items():
                hits[target] += (_exact_logits(model, adversarial).argmax(1) == y).sum().item()
    return [count / len(labels) for count in hits.values()]


def _success_rate(before: Tensor, after: Tensor) -> float:
    return (before & ~after).sum().item() / before.sum().item() if before.any() else float("nan")


def _identity(model: nn.Module, images: Tensor, labels: Tensor, attack: Attack | None) -> dict[str, str]:
    """What a result depends on. Images that are read from files are told apart by their names."""
    pixels = images if isinstance(images, Tensor) else images.paths
    return {
        "network": fingerprint(model.state_dict()),
        "images": fingerprint(pixels, labels),
        "attack": str(methods.in_words(attack)),
    }
