"""What training minimizes: functions (model, x, y) -> scalar loss, composed with `functools.partial`."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.vocabulary import Objective, did_you_mean


def natural(model: nn.Module, x: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy on clean images.

    With smoothing s the target of class k is ``(1 - s) [k = y] + s / K`` (Szegedy et al. 2016,
    arXiv 1512.00567).
    """
    return F.cross_entropy(model(x).float(), y, label_smoothing=label_smoothing)


OBJECTIVES = {"natural": natural}


def named(name: str, **settings) -> Objective:
    """An objective by name, its settings bound.

    Raises:
        ValueError: unknown name.
    """
    if name not in OBJECTIVES:
        raise ValueError(did_you_mean("objective", name, OBJECTIVES))
    return partial(OBJECTIVES[name], **settings)
