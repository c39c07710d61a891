"""The accuracy of a network, on images as they are or under attack.

Without an attack, logits are computed under the active precision policy. An attack also runs under that policy, on a
faster copy of the network (`fast_twin`), but its images are classified in float32 by the network itself.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from rqlib import data
from rqlib.attacks import losses, methods
from rqlib.core import derived, layers, runtime
from rqlib.core.entry import classifier
from rqlib.core.projections import Ball
from rqlib.core.resumable import Resumable, fingerprint
from rqlib.core.vocabulary import Attack


def logits(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack | None = None, batch_size: int = 500
) -> Tensor:
    """Logits (N, K), float32 on the CPU, of the images, or of the adversarial images that an attack makes of them.

    The model runs in eval mode; afterwards every module has the mode it had before.

    Args:
        model: any network that `core.entry.classifier` accepts: of several outputs the logits count.
        images: uint8 (N, C, H, W).
        labels: int64 (N,); an attack moves each image away from its label.

    Raises:
        ValueError: there are no images, or the numbers of images and labels differ; the network returns no logits
            (B, K) of at least two classes, or of fewer than the labels need.
    """
    parts = [logits.cpu() for logits, _ in _judged(classifier(model), images, labels, attack, batch_size)]
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
        checkpoint: a file in which the result is kept after every batch, and from which the evaluation goes on.

    Raises:
        ValueError: also if the checkpoint belongs to another network, other images or another attack.
    """
    if not len(labels):
        raise ValueError("expected at least one image to evaluate, got none")
    model = classifier(model)
    identity = {} if checkpoint is None else _identity(model, images, labels, attack)
    state = Resumable(checkpoint, identity, kind="evaluation")
    done = state.load().get("correct", torch.empty(0, dtype=torch.bool))
    rest = getattr(images, "subset", images.__getitem__)(slice(len(done), None))
    for logits, y in _judged(model, rest, labels[len(done) :], attack, batch_size):
        done = torch.cat([done, (logits.argmax(1) == y).cpu()])
        state.save(correct=done)
    return done


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, **options) -> float:
    """Fraction of images that are classified as labeled. Options and errors are those of `correct`."""
    return correct(model, images, labels, **options).float().mean().item()


def era(
    model: nn.Module, images: Tensor, labels: Tensor, *, ball: Ball, steps: int = 50, restarts: int = 10, **options
) -> float:
    """Empirical robust accuracy: the fraction of images that are classified correctly after every restart of PGD.

    The steps have the length of `attacks.pace`. A strong setting is 100 restarts of 1,000 steps each. Other
    options and errors are those of `correct`.
    """
    attack = partial(methods.pgd, ball=ball, **methods.pace(ball, steps), restarts=restarts, active_set=True)
    return accuracy(model, images, labels, attack=attack, **options)


def transfer_matrix(
    models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, *, attack: Attack, batch_size: int = 500
) -> pandas.DataFrame:
    """Accuracy of each network (column) on images that were made to fool each network (row), in float32.

    On the diagonal a network is attacked with full knowledge of itself (white-box). An attack with ``active_set``
    stops as soon as the network it attacks is fooled, and such images fool other networks less often.
    """
    models = {name: classifier(model) for name, model in models.items()}
    rows = {source: _transferred(models, source, images, labels, attack, batch_size) for source in models}
    frame = pandas.DataFrame.from_dict(rows, orient="index", columns=list(models))
    return frame.rename_axis(index="source", columns="target")


def fast_twin(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode that computes the same function in less time: BatchNorm is folded, weights are frozen.

    It is the network itself if folding is not possible (torch.fx cannot trace it) or would not be exact (weights are
    parametrized, or a hook changes what layers see), and, with a warning, if the copy computes something else.

    Args:
        x: images (B, C, H, W) on the active device, on which the copy is compared with the network.
    """
    model = classifier(model)
    parts = list(model.modules())
    if any(is_parametrized(part) or part._forward_hooks or part._forward_pre_hooks for part in parts):
        return model
    try:
        twin = runtime.active().place(layers.fold_batchnorm(model)).requires_grad_(False)
    except ValueError:
        return model
    try:
        derived.check(model, twin, x, what="folding BatchNorm")
    except derived.NotEqual as error:
        warnings.warn(f"{error}; the network itself is attacked, which takes longer", stacklevel=2)
        return model
    return twin


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K) of images; the row is the label, the column the prediction."""
    flat = labels.cpu() * num_classes + predictions.cpu()
    return torch.bincount(flat, minlength=num_classes**2).view(num_classes, num_classes)


def _judged(model, images, labels, attack: Attack | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits float32 (B, K), y (B,)) of every batch, under attack if one is given."""
    policy, twin = runtime.active(), None
    batches = data.batches(images, labels, batch_size)
    with runtime.evaluating(policy.place(model)):
        if attack is None:
            for x, y in batches:
                with torch.no_grad(), policy.autocast():
                    logits = model(x).float()
                _check_logits(logits, y)
                yield logits, y
            return
        for x, y in runtime.progress(batches, "attack", -(-len(labels) // batch_size)):
            twin = fast_twin(model, x) if twin is None else twin
            logits = _attacked_logits(model, twin, attack, x, y)
            _check_logits(logits, y)
            yield logits, y


def _check_logits(logits: Tensor, y: Tensor) -> None:
    """Raise unless logits are (B, K) with K >= 2 and labels are below K."""
    if logits.dim() != 2 or len(logits) != len(y) or logits.shape[1] < 2:
        one = "; for one output z return torch.cat([torch.zeros_like(z), z], 1)" if logits.shape[1:] == (1,) else ""
        raise ValueError(f"expected logits ({len(y)}, K) of at least two classes, got {tuple(logits.shape)}{one}")
    if y.max() >= logits.shape[1]:
        raise ValueError(f"expected labels below {logits.shape[1]}, the number of logits, got {int(y.max())}")


def _attacked_logits(model: nn.Module, twin: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """Logits of the model on attacked images, in float32; images that fool it in bfloat16 only are attacked again."""
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
    """Indices of images that are right by a margin that bfloat16 may not resolve: a quarter of the largest logit."""
    margin = -losses.margin(logits, y)
    return ((margin >= 0) & (margin < 0.25 * logits.abs().amax(1))).nonzero().squeeze(1)


def _exact_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in float32, whatever precision is active outside."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), runtime.tf32(False):
        return model(x).float()


def _transferred(models, source: str, images, labels, attack: Attack, batch_size: int) -> list[float]:
    """Accuracy of every network on images that were made to fool ``source``."""
    policy, hits = runtime.active(), dict.fromkeys(models, 0)
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(runtime.evaluating(policy.place(model)))
        batches, twin = data.batches(images, labels, batch_size), None
        for x, y in runtime.progress(batches, f"attack {source}", -(-len(labels) // batch_size)):
            twin = fast_twin(models[source], x) if twin is None else twin
            with policy.autocast():
                adversarial = attack(twin, x, y)
            for target, model in models.items():
                hits[target] += (_exact_logits(model, adversarial).argmax(1) == y).sum().item()
    return [count / len(labels) for count in hits.values()]


def _identity(model: nn.Module, images: Tensor, labels: Tensor, attack: Attack | None) -> dict[str, str]:
    """What the result depends on."""
    return {
        "network": fingerprint(model.state_dict()),
        "images": fingerprint(images, labels),
        "attack": methods.in_words(attack),
    }
