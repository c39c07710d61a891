"""Crops agree with cropping a padded image, one image at a time."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlib.core import runtime
from rqlib.data import augmentation

MODES = {"reflect": "reflect", "zeros": "constant"}  # ours: torch's


def every_crop(image: torch.Tensor, padding: int, padding_mode: str, flip: bool) -> set[bytes]:
    """All images that may come of one image: crops of its padded version, and their mirror images."""
    height, width = image.shape[1:]
    padded = F.pad(image[None].double(), [padding] * 4, mode=MODES[padding_mode])[0].to(image.dtype)
    crops = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    crops += [crop.flip(2) for crop in crops if flip]
    return {crop.contiguous().numpy().tobytes() for crop in crops}


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 4),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    padding=st.integers(0, 2),
    padding_mode=st.sampled_from(sorted(MODES)),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_result_is_a_crop_of_the_padded_image(channels, height, width, padding, padding_mode, flip, seed):
    generator = runtime.rng(seed)
    images = torch.randint(1, 256, (6, channels, height, width), dtype=torch.uint8, generator=generator)
    cropped = augmentation.crop_and_flip(images, padding=padding, padding_mode=padding_mode, flip=flip, rng=generator)
    assert cropped.shape == images.shape
    assert cropped.dtype == torch.uint8
    for image, result in zip(images, cropped, strict=True):
        assert result.contiguous().numpy().tobytes() in every_crop(image, padding, padding_mode, flip)


@pytest.mark.parametrize("padding_mode", sorted(MODES))
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_comes_up(padding_mode, flip):
    image = torch.randint(1, 256, (1, 2, 5, 6), dtype=torch.uint8, generator=runtime.rng(0))
    options = {"padding": 1, "padding_mode": padding_mode, "flip": flip}
    results = augmentation.crop_and_flip(image.expand(2000, -1, -1, -1), **options, rng=runtime.rng(1))
    found = {result.contiguous().numpy().tobytes() for result in results}
    assert found == every_crop(image[0], **options)
    assert len(found) == (18 if flip else 9)


@pytest.mark.parametrize("padding_mode", sorted(MODES))
def test_agrees_with_a_loop_over_the_same_shifts(padding_mode):
    images = torch.rand(20, 3, 9, 8, generator=runtime.rng(0))
    shifts = torch.randint(-4, 5, (2, 20, 1), generator=runtime.rng(7)).flatten(1)
    results = augmentation.crop_and_flip(images, padding_mode=padding_mode, flip=False, rng=runtime.rng(7))
    padded = F.pad(images, [4] * 4, mode=MODES[padding_mode])
    for result, image, (down, right) in zip(results, padded, shifts.T.tolist(), strict=True):
        assert torch.equal(result, image[:, 4 + down : 13 + down, 4 + right : 12 + right])


def test_memory_layout_does_not_matter():
    images = torch.rand(8, 3, 8, 8)
    last = images.contiguous(memory_format=torch.channels_last)
    a, b = (augmentation.crop_and_flip(x, flip=True, rng=runtime.rng(0)) for x in (images, last))
    assert torch.equal(a, b)
    assert a.is_contiguous(memory_format=torch.channels_last)
    assert b.is_contiguous(memory_format=torch.channels_last)


def test_without_padding_and_flip_nothing_changes_and_the_images_are_not_shared():
    images = torch.rand(3, 1, 5, 5)
    same = augmentation.crop_and_flip(images, padding=0, flip=False)
    assert torch.equal(same, images)
    same.zero_()
    assert images.any()


def test_no_images():
    assert augmentation.crop_and_flip(torch.zeros(0, 3, 8, 8), flip=True).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding_mode": "mirror"}, r"expected padding_mode reflect \| zeros .*got 'mirror' and 4"),
        ({"padding": 8}, "padding from 0 to 7, got 'reflect' and 8"),
        ({"padding": -1}, "padding from 0 to 7, got 'reflect' and -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        augmentation.crop_and_flip(torch.zeros(1, 3, 8, 9), flip=False, **options)
