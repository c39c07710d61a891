"""Rows of what a convolution reads, in the order in which they are computed fastest.

The transposed convolution of stride s is a plain one with s x s times as many channels: one for each phase, which are
the pixels that lie s apart. Where the rows are only multiplied by images, nothing has to be put back in the order of
the pixels: the images, which are fewer, are put in the order of the phases instead.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def fit(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution of images whose rows have phases: one group, no dilation, zeros around."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def transposed(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """Rows (R, C sh sw, h, w) of what a convolution reads, by phases, from rows (R, C', h', w') of its result."""
    (sh, sw), (mh, mw) = layer.stride, _taps(layer)
    (kh, kw), weight = layer.kernel_size, layer.weight
    weight = F.pad(weight, (0, mw * sw - kw, 0, mh * sh - kh)).unflatten(3, (mw, sw)).unflatten(2, (mh, sh))
    weight = weight.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
    return F.conv2d(a, weight, padding=(mh - 1, mw - 1))


def of(layer: nn.Conv2d, signal: Tensor, sizes: tuple[int, int]) -> Tensor:
    """A signal (B, C, H, W) that a convolution reads, by the phases of `transposed`; 0 outside of it.

    ``sizes`` are the height and width of the convolution's result.
    """
    ends, taps, (sh, sw) = [], _taps(layer), layer.stride
    for size, n, m, stride, padding in zip(sizes, signal.shape[2:], taps, layer.stride, layer.padding, strict=True):
        ends = [padding, (size + m - 1) * stride - n - padding, *ends]
    parts = F.pad(signal, ends).unflatten(3, (-1, sw)).unflatten(2, (-1, sh))
    return parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def _taps(layer: nn.Conv2d) -> list[int]:
    """So many weights of a kernel lie in one phase, in each direction, at most."""
    return [-(-kernel // stride) for kernel, stride in zip(layer.kernel_size, layer.stride, strict=True)]
