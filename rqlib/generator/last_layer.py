"""The last layer of a network, and what flows into it: the features by which the network tells classes apart."""

import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import layers, runtime


@torch.no_grad()
def classifier(model: nn.Module, x: Tensor) -> tuple[str, Tensor]:
    """The layer that gives the logits: its name, and its weight (K, L) for K classes and L features.

    It is the linear layer, or the 1x1 convolution, that the network calls last when it is given the images x.

    Raises:
        ValueError: the last layer with weights is of another kind, or does not give the logits; the network has
            only one class; the images do not fit the network.
    """
    called: list[str] = []
    weighted = dict(layers.weighted_layers(model))
    with runtime.evaluating(model), layers.watching(model, weighted, lambda name, *_: called.append(name)):
        logits = _logits(model, x)
    layer = weighted[called[-1]] if called else None
    if not _is_linear(layer) or layer.weight.shape[0] != logits.shape[1]:
        found = f"{called[-1]!r}, {layer}" if called else "none"
        raise ValueError(
            f"expected a network whose last layer is linear or a 1x1 convolution and gives its {logits.shape[1]} "
            f"logits, got {found}; a generator starts from the rows of that weight, one per class"
        )
    if logits.shape[1] < 2:
        raise ValueError("expected at least 2 classes, got 1: images of one class cannot be told from others")
    return called[-1], layer.weight.detach().flatten(1).float().clone()


@torch.no_grad()
def features(model: nn.Module, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """What flows into the classifier: (N, L) float32 on the CPU. Before a 1x1 convolution, the mean over positions.

    Images (N, C, H, W) are uint8, or floating point in [0, 1].

    Raises:
        ValueError: as `classifier`; no images are given.
    """
    if not len(images):
        raise ValueError("expected at least one image, got none")
    policy, found = runtime.active(), []
    batches = data.batches(images, torch.zeros(len(images)), batch_size)

    def note(name: str, inputs: tuple, output: Tensor) -> None:
        found.append(inputs[0].float().flatten(2).mean(2) if inputs[0].dim() == 4 else inputs[0].float())

    with runtime.evaluating(policy.place(model)):
        name, _ = classifier(model, policy.place(data.to_pixels(images[:1])))
        with layers.watching(model, [name], note), policy.autocast():
            for x, _ in batches:
                model(x)
    return torch.cat(found).cpu()


def _is_linear(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1})


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    try:
        logits = model(x)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"images of shape {tuple(x.shape[1:])} do not fit the network: {reason}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits ({len(x)}, K) from the network, got {got}")
    return logits
