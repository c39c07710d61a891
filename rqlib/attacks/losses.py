"""The losses that an attack increases: (logits (B, K), y (B,)) -> (B,). A larger loss is nearer to an error."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rqlib.core.vocabulary import did_you_mean


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with labels or soft labels (B, K). Its gradient vanishes if the softmax saturates."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{j != y} z_j - z_y``, positive if the image is misclassified (Carlini and Wagner 2017, arXiv 1608.04644).

    Raises:
        ValueError: soft labels.
    """
    if y.dim() != 1:
        raise ValueError(f"expected labels (B,) for a margin, got {tuple(y.shape)}; soft labels need loss='ce'")
    own = logits.gather(1, y[:, None])
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own.squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin, divided by the difference of the largest and the third logit (Croce and Hein 2020, arXiv 2003.01690).

    Raises:
        ValueError: fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"expected at least 3 classes for the DLR loss, got {logits.shape[1]}; use loss='margin'")
    top = logits.topk(3).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp(min=1e-12)


LOSSES = {"ce": ce, "margin": margin, "dlr": dlr}
"""Name -> loss of each image."""


def named(name: str):
    """A loss by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in LOSSES:
        raise ValueError(did_you_mean("attack loss", name, LOSSES))
    return LOSSES[name]
