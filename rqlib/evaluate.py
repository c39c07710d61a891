"""Accuracies, streamed over batches: memory does not grow with the number of images."""

import torch
from torch import Tensor, nn

from rqlib import data, runtime
from rqlib.vocabulary import Attack


def logits(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack | None = None, batch_size: int = 500
) -> Tensor:
    """Logits (N, K) float32 on the CPU, of the images or of the attack's version of them.

    The model runs in eval mode under the active precision policy; its modes are restored.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), what an attack moves the images away from.
    """
    policy, parts = runtime.active(), []
    with runtime.evaluating(policy.place(model)), policy.autocast():
        for x, y in data.batches(images, labels, batch_size):
            if attack is not None:
                x = attack(model, x, y)
            with torch.no_grad():
                parts.append(model(x).float().cpu())
    if not parts:
        raise ValueError("expected at least one image to evaluate, got none")
    return torch.cat(parts)


def correct(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack | None = None, batch_size: int = 500
) -> Tensor:
    """Whether each image is classified as labeled: bool (N,) on the CPU. Arguments as `logits`."""
    return logits(model, images, labels, attack=attack, batch_size=batch_size).argmax(1) == labels.cpu()


def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: Attack | None = None, batch_size: int = 500
) -> float:
    """Fraction of images classified as labeled, clean or under an attack. Arguments as `logits`."""
    return correct(model, images, labels, attack=attack, batch_size=batch_size).float().mean().item()


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K): row = label, column = prediction."""
    flat = labels.cpu() * num_classes + predictions.cpu()
    return torch.bincount(flat, minlength=num_classes**2).view(num_classes, num_classes)
