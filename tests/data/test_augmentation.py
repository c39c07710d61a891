"""Crops agree with cropping a padded image, one image at a time."""

import pytest
import torch
import torch.nn.functional as F

from rqlib.core import runtime
from rqlib.data import augmentation


def every_crop(image: torch.Tensor, padding: int, flip: bool) -> set[bytes]:
    """All images that may come of one image: crops of its padded version, and their mirror images."""
    height, width = image.shape[1:]
    padded = F.pad(image[None].double(), [padding] * 4, mode="reflect")[0].to(image.dtype)
    crops = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    crops += [crop.flip(2) for crop in crops if flip]
    return {crop.contiguous().numpy().tobytes() for crop in crops}


@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_comes_up_and_nothing_else(flip):
    image = torch.randint(1, 256, (1, 2, 5, 6), dtype=torch.uint8, generator=runtime.rng(0))
    options = {"padding": 1, "flip": flip}
    results = augmentation.crop_and_flip(image.expand(2000, -1, -1, -1), **options, rng=runtime.rng(1))
    found = {result.contiguous().numpy().tobytes() for result in results}
    assert found == every_crop(image[0], **options)
    assert len(found) == (18 if flip else 9)


def test_agrees_with_a_loop_over_the_same_shifts_in_any_memory_layout():
    images = torch.rand(20, 3, 9, 8, generator=runtime.rng(0))
    shifts = torch.randint(-4, 5, (2, 20, 1), generator=runtime.rng(7)).flatten(1)
    results = augmentation.crop_and_flip(images, flip=False, rng=runtime.rng(7))
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augmentation.crop_and_flip(last, flip=False, rng=runtime.rng(7)), results)
    assert results.is_contiguous(memory_format=torch.channels_last)
    padded = F.pad(images, [4] * 4, mode="reflect")
    for result, image, (down, right) in zip(results, padded, shifts.T.tolist(), strict=True):
        assert torch.equal(result, image[:, 4 + down : 13 + down, 4 + right : 12 + right])


def test_without_padding_and_flip_the_images_are_copied():
    images = torch.rand(3, 1, 5, 5)
    same = augmentation.crop_and_flip(images, padding=0, flip=False)
    assert torch.equal(same, images)
    same.zero_()
    assert images.any()
    assert augmentation.crop_and_flip(images[:0], flip=True).shape == (0, 1, 5, 5)


@pytest.mark.parametrize("padding", [8, -1])
def test_too_much_padding_is_refused(padding):
    with pytest.raises(ValueError, match=f"expected padding from 0 to 7, got {padding}"):
        augmentation.crop_and_flip(torch.zeros(1, 3, 8, 9), padding=padding, flip=False)
