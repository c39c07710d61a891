"""Objectives of networks that are to be smoothed by noise: they stay accurate, and of one opinion, on noisy images.

The noise N(0, sigma^2) is in pixels, before the normalization, and the noisy images are not clipped.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def smoothed(
    model: nn.Module, x: Tensor, y: Tensor, *, sigma: float = 0.25, beta: float = 6.0, label_smoothing: float = 0.0
) -> Tensor:
    """``CE(f(x), y) + beta KL(f(x) || f(x + N(0, sigma^2)))``: trains a network that is stable under noise.

    Such a network suits randomized smoothing. ``sigma`` is in pixels; the noisy images are not clipped. This is
    stability training (Li et al. 2019, arXiv 1809.03113; Carmon et al. 2019, arXiv 1905.13736).
    """
    clean = model(x).float()
    noisy = model(x + sigma * torch.randn_like(x)).float()
    divergence = F.kl_div(noisy.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return F.cross_entropy(clean, y, label_smoothing=label_smoothing) + beta * divergence


def gaussian(model: nn.Module, x: Tensor, y: Tensor, *, sigma: float = 0.25, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy on ``x + N(0, sigma^2)``, not clipped (Cohen et al. 2019, arXiv 1902.02918)."""
    return F.cross_entropy(model(x + sigma * torch.randn_like(x)).float(), y, label_smoothing=label_smoothing)


def consistency(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float = 0.25,
    beta: float = 10.0,
    entropy: float = 0.5,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`gaussian` over two draws, plus ``beta mean KL(p || p_i) + entropy H(p)``, where p is the mean of both p_i.

    Source: Jeong and Shin 2020, arXiv 2006.04062.
    """
    noisy = torch.cat([x, x]) + sigma * torch.randn(2 * len(x), *x.shape[1:], device=x.device)
    logits = model(noisy).float()
    each = logits.log_softmax(1).view(2, len(x), -1)
    mean = (each.logsumexp(0) - math.log(2)).exp()
    divergence = sum(F.kl_div(one, mean, reduction="batchmean") for one in each) / 2
    uncertainty = -(mean * mean.clamp(min=1e-20).log()).sum(1).mean()
    plain = F.cross_entropy(logits, torch.cat([y, y]), label_smoothing=label_smoothing)
    return plain + beta * divergence + entropy * uncertainty


NOISY = {"smoothed": smoothed, "gaussian": gaussian, "consistency": consistency}
"""Name -> objective for randomized smoothing, which takes ``sigma``."""
