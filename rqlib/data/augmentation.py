"""Augmentation of a whole batch at once: random crop from the padded images, horizontal flip."""

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, *, padding: int = 4, flip: bool, rng: torch.Generator | None = None) -> Tensor:
    """Shift every image by up to ``padding`` pixels in both directions, and mirror it with probability 1/2.

    This is the same as cropping each image from its version padded by reflection, with all pixels fetched in one step.

    Args:
        images: (B, C, H, W) of any dtype and device; the result has the same, in channels_last memory.
        flip: whether images are mirrored at all.
        rng: on the CPU.

    Raises:
        ValueError: an image too small for the padding.
    """
    count, channels, height, width = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(f"expected padding from 0 to {min(height, width) - 1}, got {padding}")
    shifts = torch.randint(-padding, padding + 1, (2, count, 1), generator=rng)
    mirrored = torch.randint(2 if flip else 1, (1, count, 1), generator=rng)
    down, right, mirrored = torch.cat([shifts, mirrored]).to(images.device)  # each (B, 1)
    rows = torch.arange(height, device=images.device) + down  # (B, H): where each output row comes from
    columns = torch.arange(width, device=images.device)
    columns = torch.where(mirrored == 1, width - 1 - columns, columns) + right  # (B, W)
    return _fetch(images, _reflected(rows, height), _reflected(columns, width))


def _fetch(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[b, c, i, j] = images[b, c, rows[b, i], columns[b, j]], fetching all channels of a pixel together."""
    count, channels, height, width = images.shape
    first = torch.arange(count, device=images.device)[:, None, None] * (height * width)
    pixels = first + rows[:, :, None] * width + columns[:, None, :]  # (B, H, W)
    flat = images.permute(0, 2, 3, 1).reshape(-1, channels)
    return flat.index_select(0, pixels.flatten()).view(count, height, width, channels).permute(0, 3, 1, 2)


def _reflected(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()
